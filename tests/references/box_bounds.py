"""The linear bound of one box, row by row in plain loops: for the batched and the compiled search. NumPy only."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def chord_above(t: float, rho: float) -> tuple[float, float]:
    """Slope and value at ``t`` of the line that meets ``max(s, 0)`` at both ends of ``|s - t| <= rho``."""
    if t >= rho:
        return 1.0, t
    if t <= -rho:
        return 0.0, 0.0
    slope = (t + rho) / (2.0 * rho)
    return slope, slope * rho


def line_below(t: float, rho: float) -> tuple[float, float]:
    """Slope and value at ``t`` of a line through the origin below ``max(s, 0)``."""
    if t >= rho:
        return 1.0, t
    if t <= -rho:
        return 0.0, 0.0
    slope = min(max(0.5 + t / (1.2 * rho), 0.0), 1.0)
    return slope, slope * t


def concave_maximum(const: float, slope: FloatArray, centre: FloatArray, width: FloatArray, bound: float) -> float:
    """Upper bound of ``const + slope'(p - centre) - bound ||p||``: four projected gradient steps, a tangent at each."""
    point, best = centre.copy(), math.inf
    for _ in range(4):
        unit = point / math.sqrt(float(point @ point))
        best = min(best, const - bound * float(unit @ centre) + float(np.abs(slope - bound * unit) @ width))
        step = math.sqrt(float(point @ point)) / bound
        point = np.clip(point + step * (slope - bound * unit), centre - width, centre + width)
    return best


def scalar_box_excess(
    rows: FloatArray, duals: FloatArray, linear: FloatArray, centre: FloatArray, width: FloatArray, bound: float
) -> float:
    """Bound on ``linear'p + sum_i duals_i (rows_i'p)_+ - bound ||p||`` over the box."""
    const, slope = float(linear @ centre), linear.copy()
    for row, dual in zip(rows, duals, strict=True):
        t, rho = float(row @ centre), float(np.abs(row) @ width)
        a, value = chord_above(t, rho) if dual > 0 else line_below(t, rho)
        const += dual * value
        slope = slope + dual * a * row
    return concave_maximum(const, slope, centre, width, bound)


def vector_box_excess(
    rows: FloatArray,  # (n, r)
    duals: FloatArray,  # (n, c)
    linear: FloatArray,  # (r, c)
    centre: FloatArray,
    width: FloatArray,
    bound: float,
) -> float:
    """Bound on ``s + q^2 / M - bound ||p||`` over the box.

    s is the part of w along its direction v at the centre (the first axis if w is zero there), q the rest. The bound is ``inf``
    where M, a lower bound of ``bound ||p|| + s``, is below a fiftieth of ``bound``.
    """
    image = linear.T @ centre + duals.T @ np.maximum(rows @ centre, 0.0)
    ahead = image / np.linalg.norm(image) if image.any() else np.eye(len(image))[0]
    top_const = low_const = float(ahead @ linear.T @ centre)
    top, low = linear @ ahead, linear @ ahead
    rest = linear.T @ centre - top_const * ahead
    rest_slope = linear - np.outer(linear @ ahead, ahead)
    parts, weight, gram = np.zeros(len(ahead)), 0.0, np.zeros((len(ahead),) * 2)
    for row, dual in zip(rows, duals, strict=True):
        t, rho = float(row @ centre), float(np.abs(row) @ width)
        along = float(dual @ ahead)
        (chord, chord_value), (line, line_value) = chord_above(t, rho), line_below(t, rho)
        up, up_value = (chord, chord_value) if along > 0 else (line, line_value)
        down, down_value = (line, line_value) if along > 0 else (chord, chord_value)
        top_const, top = top_const + along * up_value, top + along * up * row
        low_const, low = low_const + along * down_value, low + along * down * row
        side = dual - along * ahead
        half_gap = (rho - t) * (rho + t) / (4.0 * rho) if abs(t) < rho else 0.0
        rest = rest + side * (chord * t + half_gap)
        rest_slope = rest_slope + chord * np.outer(row, side)
        parts += np.abs(side) * half_gap
        length = float(np.linalg.norm(side))
        weight += length * half_gap
        gram += np.outer(side, side) * (half_gap / length if length else 0.0)
    radius = math.sqrt(float(parts @ parts))
    if len(ahead) >= 4:
        radius = min(radius, math.sqrt(math.sqrt(float(np.linalg.norm(gram @ gram))) * weight))
    farthest = float(np.linalg.norm(np.abs(rest) + np.abs(rest_slope).T @ width)) + radius
    unit = centre / np.linalg.norm(centre)
    floor = low_const + bound * float(np.linalg.norm(centre)) - float(np.abs(low + bound * unit) @ width)
    nearest = bound * float(np.linalg.norm(np.maximum(np.abs(centre) - width, 0.0)))
    least = low_const - float(np.abs(low) @ width)
    floor = max(floor, nearest + least)
    if farthest < nearest:
        room = math.sqrt(nearest**2 - farthest**2)
        if least >= -room:
            floor = max(floor, nearest + room)
    if floor <= 0.02 * bound:
        return math.inf
    return concave_maximum(top_const + farthest**2 / floor, top, centre, width, bound)
