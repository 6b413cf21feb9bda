"""The two-layer dual norm of rank one and two by a sweep in 60-digit decimals."""

from __future__ import annotations

import functools
import math
from decimal import Context, Decimal, localcontext
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.verification._feasibility import Feasibility

__all__ = ["plane_feasibility"]

FloatArray = NDArray[np.float64]
Vector = tuple[Decimal, Decimal]

_DIGITS = 60
_ERROR = Decimal("1e-45")  # relative to sum_i |Lam_i| |x_i|; up to 1e6 operations are off by 1e-60 each
_METHOD = "sweep of the circle in 60-digit decimals"


def plane_feasibility(
    rows: FloatArray,  # (n, 1) or (n, 2)
    duals: FloatArray,  # (n, c)
    slope: float,
    lost: Decimal,
    limit_squared: Fraction,
) -> Feasibility:
    r"""Decide whether ``max ||Lam's(X u)||`` over the unit circle, plus ``lost``, has a square of at most ``limit_squared``.

    Args:
        rows: X.
        duals: Lam.
        slope: Slope of s left of zero.
        lost: Bound on what the reduction to two dimensions changed.
        limit_squared: Square of the limit.
    """
    with localcontext(Context(prec=_DIGITS)) as context:
        context.Emin, context.Emax = -999_999, 999_999
        points = [(Decimal(row[0]), Decimal(row[1]) if len(row) > 1 else Decimal(0)) for row in rows.tolist()]
        values = [[Decimal(entry) for entry in row] for row in duals.tolist()]
        size = sum((_norm(list(p)) * _norm(v) for p, v in zip(points, values, strict=True)), Decimal(0))
        best = _largest(points, values, Decimal(slope))
        error = _ERROR * (1 + abs(Decimal(slope))) * size
        limit = (Decimal(limit_squared.numerator) / Decimal(limit_squared.denominator)).sqrt()
        upper, lower = best + lost + error, best - lost - error
        holds = True if upper <= limit * (1 - _ERROR) else False if lower > limit * (1 + _ERROR) else None
        found = math.nextafter(float(upper), math.inf)
    reasons = {True: "", False: "The dual norm exceeds its limit.", None: "The dual norm and its limit are too close to tell."}
    return Feasibility(holds=holds, upper=found, method=_METHOD, reason=reasons[holds])


def _largest(points: list[Vector], values: list[list[Decimal]], slope: Decimal) -> Decimal:
    """Maximum over the circle, arc by arc; the map on the first arc is summed afresh, then updated at each event."""
    used = [(p, v) for p, v in zip(points, values, strict=True) if any(p)]
    if not used:
        return Decimal(0)
    # Turning counterclockwise, row x switches on at (x_2, -x_1) and off at (-x_2, x_1).
    events = [((p[1], -p[0]), index, True) for index, (p, _) in enumerate(used)]
    events += [((-p[1], p[0]), index, False) for index, (p, _) in enumerate(used)]
    angle = functools.cmp_to_key(_compare)
    events.sort(key=lambda event: angle(event[0]))
    directions = [direction for direction, _, _ in events]
    widest, middle = _widest_arc(directions)
    events = events[widest:] + events[:widest]
    active = [_dot(p, middle) > 0 for p, _ in used]
    outputs = range(len(used[0][1]))
    image = [[Decimal(0), Decimal(0)] for _ in outputs]
    for (p, v), is_on in zip(used, active, strict=True):
        for j in outputs:
            weight = v[j] if is_on else v[j] * slope
            image[j][0] += weight * p[0]
            image[j][1] += weight * p[1]
    best, before = Decimal(0), directions[widest - 1]
    for direction, index, is_on in events:
        best = max(best, _largest_on_arc(image, before, direction))
        if is_on != active[index]:
            p, v = used[index]
            for j in outputs:
                change = v[j] * (1 - slope) if is_on else v[j] * (slope - 1)
                image[j][0] += change * p[0]
                image[j][1] += change * p[1]
            active[index] = is_on
        before = direction
    return best.sqrt()


def _widest_arc(directions: list[Vector]) -> tuple[int, Vector]:
    """The event that ends the widest arc, and the middle of that arc, where no row can be mistaken for zero."""
    units = [(p[0] / length, p[1] / length) for p in directions if (length := _norm(list(p)))]
    cosines = [_dot(units[index - 1], unit) for index, unit in enumerate(units)]
    widest = min(range(len(units)), key=lambda index: cosines[index])
    begin, end = units[widest - 1], units[widest]
    if cosines[widest] < Decimal("-0.5"):  # next to half a turn the sum of both ends vanishes
        is_half_turn = cosines[widest] < Decimal("-0.999")
        return widest, (-begin[1], begin[0]) if is_half_turn else (begin[0] - begin[1], begin[1] + begin[0])
    return widest, (begin[0] + end[0], begin[1] + end[1])


def _largest_on_arc(image: list[list[Decimal]], begin: Vector, end: Vector) -> Decimal:
    """Largest squared norm of the map over unit vectors from ``begin`` counterclockwise to ``end``, at most half a turn."""
    a = sum((m[0] * m[0] for m in image), Decimal(0))
    b = sum((m[0] * m[1] for m in image), Decimal(0))
    d = sum((m[1] * m[1] for m in image), Decimal(0))

    def square(p: Vector) -> Decimal:
        return (a * p[0] * p[0] + 2 * b * p[0] * p[1] + d * p[1] * p[1]) / _dot(p, p)

    best = max(square(begin), square(end))
    root = ((a - d) * (a - d) + 4 * b * b).sqrt()
    top = (a + d + root) / 2
    peak = (b, top - a) if abs(top - a) > abs(top - d) else (top - d, b)
    for sign in (1, -1):
        p = (sign * peak[0], sign * peak[1])
        if any(p) and _cross(begin, p) >= 0 and _cross(p, end) >= 0:
            best = max(best, top)
    return best


def _compare(first: Vector, second: Vector) -> int:
    """Order by angle in [0, 2 pi)."""
    halves = [0 if p[1] > 0 or (p[1] == 0 and p[0] > 0) else 1 for p in (first, second)]
    if halves[0] != halves[1]:
        return halves[0] - halves[1]
    cross = _cross(first, second)
    return -1 if cross > 0 else int(cross < 0)


def _cross(first: Vector, second: Vector) -> Decimal:
    return first[0] * second[1] - first[1] * second[0]


def _dot(first: Vector, second: Vector) -> Decimal:
    return first[0] * second[0] + first[1] * second[1]


def _norm(vector: list[Decimal]) -> Decimal:
    return sum((entry * entry for entry in vector), Decimal(0)).sqrt()
