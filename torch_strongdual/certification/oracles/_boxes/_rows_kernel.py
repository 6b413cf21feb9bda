"""Compiled: sums over the undecided rows of a box, in single precision and in whole vectors of rows."""

from __future__ import annotations

import numpy as np

from torch_strongdual.certification.oracles._boxes._compiled_kernel import part
from torch_strongdual.certification.oracles._boxes.scratch import LANES

__all__ = ["fill_lanes", "fill_lanes_by_sign", "gather_points", "row_moments", "row_sums"]

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_PASSED, _COUNTED = np.uint64(0), np.uint64(1)
_LEAST = 1e-12  # shorter ranges are taken for as long: their squares are far from underflow then


@part
def gather_points(points, index, near, start):  # type: ignore[no-untyped-def]
    """Coordinates of the rows ``index`` of ``points`` (n, rank), one after the other in ``near`` from ``start`` on."""
    last = points.shape[1] - 1
    end = start + index.shape[0]
    for k in range(0, last + 1, 2):  # of each row: stores are what takes time
        after = min(k + 1, last)
        x0, x1 = near[k, start:end], near[after, start:end]
        for s in range(index.shape[0]):
            i = index[s]
            x0[s], x1[s] = points[i, k], points[i, after]


@part
def fill_lanes(points, index, lams, middle, reach, positive, near, single):  # type: ignore[no-untyped-def]
    """Bring the undecided rows ``index`` to single precision, each sign filled up to whole vectors.

    What is left over of a loop in vectors is done row by row and takes longest, so rows are added that count for nothing.
    The first ``positive`` rows have positive duals. ``points`` (n, rank) are all rows; ``near`` (rank, size) receives the
    coordinates, ``single`` duals, values at the centre and ranges. Returns where the others start, and how many there are.
    """
    kept = index.shape[0]
    start = -(-positive // LANES) * LANES
    size = start - (-(kept - positive) // LANES) * LANES
    _fill(points, index[:positive], lams[:positive], middle[:positive], reach[:positive], near, single, 0, start)
    _fill(points, index[positive:], lams[positive:], middle[positive:], reach[positive:], near, single, start, size)
    return start, size


@part
def _fill(points, index, lams, middle, reach, near, single, start, end):  # type: ignore[no-untyped-def]
    """Rows of one sign, from ``start`` to ``end``."""
    kept = index.shape[0]
    duals, values, ranges = single[0, start : start + kept], single[1, start : start + kept], single[2, start : start + kept]
    for s in range(kept):
        duals[s], values[s], ranges[s] = lams[s], middle[s], max(reach[s], _LEAST)
    gather_points(points, index, near, start)
    _blank(near, single, start + kept, end)


@part
def fill_lanes_by_sign(gathered, lams, middle, reach, near, single, places):  # type: ignore[no-untyped-def]
    """As :func:`fill_lanes`, rows of both signs in any order; ``gathered`` (rank, at least as many) are their coordinates."""
    kept = middle.shape[0]
    positive = 0
    for s in range(kept):
        positive += 1 if lams[s] > 0.0 else 0
    start = -(-positive // LANES) * LANES
    size = start - (-(kept - positive) // LANES) * LANES
    ahead = np.uint64(0)
    behind = np.uint64(start)
    for s in range(kept):
        is_ahead = lams[s] > 0.0
        places[s] = ahead if is_ahead else behind
        ahead += _COUNTED if is_ahead else _PASSED
        behind += _PASSED if is_ahead else _COUNTED
    duals, values, ranges = single[0], single[1], single[2]
    for s in range(kept):
        at = places[s]
        duals[at], values[at], ranges[at] = lams[s], middle[s], max(reach[s], _LEAST)
    _blank(near, single, positive, start)
    _blank(near, single, start + kept - positive, size)
    last = near.shape[0] - 1
    for k in range(0, last + 1, 2):
        after = min(k + 1, last)
        x0, x1, y0, y1 = near[k], near[after], gathered[k], gathered[after]
        for s in range(kept):
            at = places[s]
            x0[at], x1[at] = y0[s], y1[s]
    return start, size


@part
def _blank(near, single, start, end):  # type: ignore[no-untyped-def]
    """Rows that count for nothing."""
    # Parts of rows: of a part of a matrix the compiler would not know that rows lie without gaps.
    duals, values, ranges = single[0, start:end], single[1, start:end], single[2, start:end]
    for s in range(end - start):
        duals[s], values[s], ranges[s] = _ZERO, -_ONE, _ONE
    for k in range(near.shape[0]):
        column = near[k, start:end]
        for s in range(end - start):
            column[s] = _ZERO


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
