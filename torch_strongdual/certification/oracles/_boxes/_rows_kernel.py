"""Compiled: sums over the undecided rows of a box, in single precision and in whole vectors of rows."""

from __future__ import annotations

import numpy as np

from torch_strongdual.certification.oracles._boxes._compiled_kernel import part
from torch_strongdual.certification.oracles._boxes.scratch import LANES

__all__ = ["fill_lanes", "gather_points", "row_moments", "row_sums"]

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_LEAST = 1e-12  # shorter ranges are taken for as long: their squares are far from underflow then


@part
def gather_points(points, index, near):  # type: ignore[no-untyped-def]
    """Coordinates of the rows ``index`` of ``points`` (n, rank), one after the other in ``near`` (rank, at least as many)."""
    last = points.shape[1] - 1
    for k in range(0, last + 1, 4):
        k1, k2, k3 = min(k + 1, last), min(k + 2, last), min(k + 3, last)
        x0, x1, x2, x3 = near[k], near[k1], near[k2], near[k3]
        for s in range(index.shape[0]):
            i = index[s]
            x0[s], x1[s], x2[s], x3[s] = points[i, k], points[i, k1], points[i, k2], points[i, k3]


@part
def fill_lanes(points, index, lams, middle, reach, near, single, places):  # type: ignore[no-untyped-def]
    """Bring the undecided rows ``index`` to single precision, positive duals first, each sign filled up to whole vectors.

    What is left over of a loop in vectors is done row by row and takes longest, so rows are added that count for nothing.
    ``points`` (n, rank) are all rows; ``near`` (rank, size) receives the coordinates, ``single`` duals, values at the centre
    and ranges. Returns how many rows with a positive dual there are, and how many in all.
    """
    kept = index.shape[0]
    positive = 0
    for s in range(kept):
        positive += 1 if lams[s] > 0.0 else 0
    start = -(-positive // LANES) * LANES
    size = start - (-(kept - positive) // LANES) * LANES
    ahead = 0
    behind = start
    for s in range(kept):
        is_ahead = lams[s] > 0.0
        places[s] = ahead if is_ahead else behind
        ahead += 1 if is_ahead else 0
        behind += 0 if is_ahead else 1
    for s in range(kept):
        at = places[s]
        single[0, at], single[1, at], single[2, at] = lams[s], middle[s], max(reach[s], _LEAST)
    for s in range(ahead, start):
        single[0, s], single[1, s], single[2, s] = _ZERO, -_ONE, _ONE
    for s in range(behind, size):
        single[0, s], single[1, s], single[2, s] = _ZERO, -_ONE, _ONE
    last = points.shape[1] - 1
    for k in range(0, last + 1, 4):
        k1, k2, k3 = min(k + 1, last), min(k + 2, last), min(k + 3, last)
        x0, x1, x2, x3 = near[k], near[k1], near[k2], near[k3]
        for s in range(kept):
            i = index[s]
            at = places[s]
            x0[at], x1[at], x2[at], x3[at] = points[i, k], points[i, k1], points[i, k2], points[i, k3]
        for s in range(ahead, start):
            x0[s], x1[s], x2[s], x3[s] = _ZERO, _ZERO, _ZERO, _ZERO
        for s in range(behind, size):
            x0[s], x1[s], x2[s], x3[s] = _ZERO, _ZERO, _ZERO, _ZERO
    return start, size


@part
def row_moments(columns, face_axis, width, aim, spread, means, variances, weighted):  # type: ignore[no-untyped-def]
    """Mean and variance of every row ``x'(p - centre)`` for the law with mean ``aim`` and covariance ``spread``.

    Four coordinates are taken together, so that numbers stay in registers; those that are missing count zero times.
    """
    size = means.shape[0]
    for s in range(size):
        means[s] = _ZERO
        variances[s] = _ZERO
    for a in range(width.shape[0] - 1):
        k = _axis(a, face_axis)
        column = columns[k]
        ahead = np.float32(aim[a] * width[k])
        once = np.float32(spread[a, a] * width[k] * width[k])
        twice = 2.0 * width[k]
        for b in range(0, max(a, 1), 4):
            j0, j1, j2, j3 = _four_axes(b, a, face_axis)
            x0, x1, x2, x3 = columns[j0], columns[j1], columns[j2], columns[j3]
            c0 = np.float32(twice * width[j0] * spread[a, b]) if b < a else _ZERO
            c1 = np.float32(twice * width[j1] * spread[a, b + 1]) if b + 1 < a else _ZERO
            c2 = np.float32(twice * width[j2] * spread[a, b + 2]) if b + 2 < a else _ZERO
            c3 = np.float32(twice * width[j3] * spread[a, b + 3]) if b + 3 < a else _ZERO
            if b == 0 and a <= 4:
                for s in range(size):
                    x = column[s]
                    means[s] += ahead * x
                    variances[s] += (once * x + (c0 * x0[s] + c1 * x1[s]) + (c2 * x2[s] + c3 * x3[s])) * x
            elif b == 0:
                for s in range(size):
                    x = column[s]
                    means[s] += ahead * x
                    weighted[s] = once * x + (c0 * x0[s] + c1 * x1[s]) + (c2 * x2[s] + c3 * x3[s])
            elif b + 4 < a:
                for s in range(size):
                    weighted[s] += (c0 * x0[s] + c1 * x1[s]) + (c2 * x2[s] + c3 * x3[s])
            else:
                for s in range(size):
                    variances[s] += (weighted[s] + (c0 * x0[s] + c1 * x1[s]) + (c2 * x2[s] + c3 * x3[s])) * column[s]


@part
def row_sums(columns, face_axis, width, slopes, curves, weighted, diagonal_only, gradient, hessian):  # type: ignore[no-untyped-def]
    """Gradient ``sum_s slopes_s x_s`` and the lower triangle of ``sum_s curves_s x_s x_s'``, in units of the box."""
    size = slopes.shape[0]
    for a in range(width.shape[0] - 1):
        k = _axis(a, face_axis)
        column = columns[k]
        total = _ZERO
        curve = _ZERO
        for s in range(size):
            x = column[s]
            y = curves[s] * x
            weighted[s] = y
            total += slopes[s] * x
            curve += y * x
        gradient[a] = total * width[k]
        hessian[a, a] = curve * width[k] * width[k]
        for b in range(0, 0 if diagonal_only else a, 4):
            j0, j1, j2, j3 = _four_axes(b, a, face_axis)
            x0, x1, x2, x3 = columns[j0], columns[j1], columns[j2], columns[j3]
            t0 = t1 = t2 = t3 = _ZERO
            for s in range(size):
                y = weighted[s]
                t0 += y * x0[s]
                t1 += y * x1[s]
                t2 += y * x2[s]
                t3 += y * x3[s]
            hessian[a, b] = t0 * width[k] * width[j0]
            if b + 1 < a:
                hessian[a, b + 1] = t1 * width[k] * width[j1]
            if b + 2 < a:
                hessian[a, b + 2] = t2 * width[k] * width[j2]
            if b + 3 < a:
                hessian[a, b + 3] = t3 * width[k] * width[j3]


@part
def _four_axes(b, a, face_axis):  # type: ignore[no-untyped-def]
    """The coordinates behind b to b + 3, but none behind a."""
    return (
        _axis(b, face_axis),
        _axis(min(b + 1, a), face_axis),
        _axis(min(b + 2, a), face_axis),
        _axis(min(b + 3, a), face_axis),
    )


@part
def _axis(a, face_axis):  # type: ignore[no-untyped-def]
    """The coordinate behind a number that leaves out the axis without a width."""
    return a if a < face_axis else a + 1
