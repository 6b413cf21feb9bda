"""Compiled: the best parabola of each row for a law of the point in a box."""

from __future__ import annotations

import numpy as np

from torch_strongdual.certification.oracles._boxes._compiled_kernel import part

__all__ = ["answer_negative", "answer_positive"]

# Single precision throughout: a constant of another type would widen the loops. What that costs is counted in docs/rounding.md.
_ZERO, _ONE, _TWO, _QUARTER = np.float32(0.0), np.float32(1.0), np.float32(2.0), np.float32(0.25)
_THIN = np.float32(1e-3)  # ranges that reach less across zero get a line: a parabola would be too steep


@part
def answer_positive(middle, reach, half_inverse, lams, means, variances, steep, constants):  # type: ignore[no-untyped-def]
    r"""Best parabolas ``c0 + c1 x + c2 x^2 >= (t + x)_+`` on ``|x| <= rho`` for a law of x; lam > 0.

    Overwrites ``means`` by ``lam c1`` and ``variances`` by ``2 lam c2``. ``constants`` adds up lam c0, the value under the law
    and the magnitude; ``steep`` keeps the largest slope ``c2 rho`` of each row. ``half_inverse`` is 1 / (2 rho).
    """
    total = _ZERO
    value = _ZERO
    magnitude = _ZERO
    for s in range(middle.shape[0]):
        t = middle[s]
        rho = reach[s]
        lam = lams[s]
        variance = max(variances[s], _ZERO)
        x = means[s]
        # (s)_+ = s + (-s)_+, so that the centre may be taken as not positive
        sign = -_ONE if t > _ZERO else _ONE
        flipped = sign * t
        mean = sign * x
        right = flipped + rho
        m = flipped + mean
        thin = _THIN * rho
        a = m - variance / max(right - m, thin)
        # right (s - a)^2 / (right - a)^2 touches s at s = right with a slope of at most one;
        # (s + h)^2 / (4 h) >= s for every h > 0.
        h = max(min(right, np.sqrt(m * m + variance)), thin)
        near = a > -right
        root = -h if near else a
        above = right - root
        c2 = (_QUARTER if near else right) / (h if near else above * above)
        distance = flipped - root
        c0 = c2 * distance * distance
        c1 = _TWO * c2 * distance
        if right <= thin:
            c2 = _ZERO
            c1 = right * half_inverse[s]
            c0 = c1 * rho
        if t > _ZERO:
            # x -> -x, and add s = t + x
            c0 += t
            c1 = _ONE - c1
        total += lam * c0
        value += lam * (c0 + c1 * x + c2 * (x * x + variance))
        magnitude += lam * (abs(c0) + abs(c1) * rho + c2 * rho * rho)
        steep[s] = max(steep[s], c2 * rho)
        means[s] = lam * c1
        variances[s] = _TWO * lam * c2
    constants[0] += total
    constants[1] += value
    constants[2] += magnitude


@part
def answer_negative(middle, reach, half_inverse, lams, means, variances, steep, constants):  # type: ignore[no-untyped-def]
    r"""Best parabolas below ``(t + x)_+``, for lam < 0; otherwise as :func:`answer_positive`.

    ``a s + b s^2 <= (s)_+`` on [left, right] if ``b <= a / |left|`` and ``b <= (1 - a) / right``: the best of three corners.
    """
    total = _ZERO
    value = _ZERO
    magnitude = _ZERO
    for s in range(middle.shape[0]):
        t = middle[s]
        rho = reach[s]
        lam = lams[s]
        x = means[s]
        m = t + x
        square = m * m + max(variances[s], _ZERO)
        half = half_inverse[s]
        a = (rho - t) * half
        b = half
        if m * (t + rho) > square:
            a = _ONE
            b = _ZERO
        if m * (t - rho) > square:
            a = _ZERO
            b = _ZERO
        c0 = a * t + b * t * t
        c1 = a + _TWO * b * t
        total += lam * c0
        value += lam * (a * m + b * square)
        magnitude -= lam * (abs(c0) + abs(c1) * rho + b * rho * rho)
        steep[s] = max(steep[s], b * rho)
        means[s] = lam * c1
        variances[s] = _TWO * lam * b
    constants[0] += total
    constants[1] += value
    constants[2] += magnitude
