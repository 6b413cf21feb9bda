"""Compiled quadratic bound of one box: rows that change sign in it get quadratic majorants, fitted to where the maximum is."""

from __future__ import annotations

import numpy as np
from numba import njit

from torch_strongdual.certification.oracles._boxes._cells_kernel import FAST

__all__ = ["CURVED_RANK", "may_pay", "quadratic_excess"]

CURVED_RANK = 5  # below it linear bounds and more cells are faster

_THIN = 1e-3  # ranges that reach across zero by less than this share are bounded by a line: a parabola would be too steep


@njit(nogil=True, cache=True, fastmath=FAST)
def may_pay(tried, won, level):  # type: ignore[no-untyped-def]
    """Whether the quadratic bound proves enough cells of this depth to be worth its time; asks again now and then."""
    tried[level] += 1
    return won[level] * 32 >= tried[level] or tried[level] < 32 or tried[level] % 16 == 0


@njit(nogil=True, cache=True, fastmath=FAST)
def _row_majorant(t, rho, positive, mean, variance):  # type: ignore[no-untyped-def]
    r"""Coefficients (c0, c1, c2) of a parabola in x above ``(t + x)_+``, below it if not ``positive``, for ``|x| <= rho``.

    Of a family the one with the best mean is taken, for a law of x with this mean and variance.
    """
    if positive:
        flipped = t > 0.0  # (s)_+ = s + (-s)_+, so that the centre may be taken as not positive
        if flipped:
            t, mean = -t, -mean
        right = t + rho
        if right <= _THIN * rho:
            slope = right / (2.0 * rho)
            c0, c1, c2 = slope * rho, slope, 0.0
        else:
            m = t + mean
            a = m - variance / max(right - m, _THIN * rho)
            if a <= -right:
                # right (s - a)^2 / (right - a)^2 touches s at s = right with a slope of at most one.
                c2 = right / ((right - a) * (right - a))
                root = a
            else:
                # (s + h)^2 / (4 h) >= s for every h > 0.
                h = max(min(right, np.sqrt(m * m + variance)), _THIN * rho)
                c2 = 0.25 / h
                root = -h
            c0 = c2 * (t - root) * (t - root)
            c1 = 2.0 * c2 * (t - root)
        if flipped:
            # x -> -x, and add s = -t + x
            return c0 - t, 1.0 - c1, c2
        return c0, c1, c2
    left = t - rho
    right = t + rho
    # a s + b s^2 <= (s)_+ on [left, right] if b <= a / |left| and b <= (1 - a) / right; the best of the three corners.
    m = t + mean
    square = m * m + variance
    if m * right > square:
        a, b = 1.0, 0.0
    elif m * left > square:
        a, b = 0.0, 0.0
    else:
        b = 1.0 / (2.0 * rho)
        a = -left * b
    return a * t + b * t * t, a + 2.0 * b * t, b


@njit(nogil=True, cache=True, fastmath=FAST)
def _cholesky(matrix, diagonal, shift, factor):  # type: ignore[no-untyped-def]
    """Lower factor of ``diag(diagonal) - matrix - shift``; whether it exists."""
    size = matrix.shape[0]
    for j in range(size):
        for i in range(j, size):
            total = -matrix[i, j]
            if i == j:
                total += diagonal[i] - shift
            for k in range(j):
                total -= factor[i, k] * factor[j, k]
            if i == j:
                if total <= 0.0:
                    return False
                factor[i, i] = np.sqrt(total)
            else:
                factor[i, j] = total / factor[j, j]
    return True


@njit(nogil=True, cache=True, fastmath=FAST)
def _solve(factor, right, solution):  # type: ignore[no-untyped-def]
    size = factor.shape[0]
    for i in range(size):
        total = right[i]
        for k in range(i):
            total -= factor[i, k] * solution[k]
        solution[i] = total / factor[i, i]
    for i in range(size - 1, -1, -1):
        total = solution[i]
        for k in range(i + 1, size):
            total -= factor[k, i] * solution[k]
        solution[i] = total / factor[i, i]


@njit(nogil=True, cache=True, fastmath=FAST)
def _largest_quadratic(gradient, hessian, weights, before, factor, point, enough):  # type: ignore[no-untyped-def]
    r"""Bound ``max g'v + v'Hv / 2`` over ``|v_k| <= 1`` from above.

    For D >= 0 with ``M = D - H >= 0`` and any y: ``g'v + v'Hv / 2 <= g'v - v'Mv / 2 + tr(D) / 2``, and with ``r = g - My`` that
    is at most ``g'y - y'My / 2 + sum |r_k| (1 + |y_k|) + tr(D) / 2``. So y need not be exact, and M is tested by a Cholesky
    factorisation with a shift that exceeds its rounding errors. ``point`` receives y, clipped to the box.
    """
    size = gradient.shape[0]
    largest = 0.0
    for k in range(size):
        total = abs(gradient[k]) + max(hessian[k, k], 0.0)
        for j in range(size):
            if j != k:
                total += abs(hessian[k, j])
        weights[k] = total
        largest = max(largest, total + abs(hessian[k, k]))
    shift = 1e-14 * size * size * largest + 1e-300
    best = np.inf
    for k in range(size):
        weights[k] = max(weights[k], 8.0 * shift)
        before[k] = weights[k]
    for sweep in range(8):
        if not _cholesky(hessian, weights, shift, factor):
            for k in range(size):
                weights[k] = 0.5 * (weights[k] + before[k])
            if not _cholesky(hessian, weights, shift, factor):
                break
        _solve(factor, gradient, point)
        value = 0.0
        for k in range(size):
            product = weights[k] * point[k]
            for j in range(size):
                product -= hessian[k, j] * point[j]
            value += point[k] * (gradient[k] - 0.5 * product) + 0.5 * weights[k]
            value += abs(gradient[k] - product) * (1.0 + abs(point[k]))
        if value > best - 1e-3 * abs(best) and sweep > 1:
            best = min(best, value)
            break
        best = min(best, value)
        if best <= enough:
            break
        # What is attained inside the box cannot be bounded away: give up early on cells that have to be split.
        attained = 0.0
        for k in range(size):
            aside = min(max(point[k], -1.0), 1.0)
            inner = 0.0
            for j in range(size):
                inner += hessian[k, j] * min(max(point[j], -1.0), 1.0)
            attained += aside * (gradient[k] + 0.5 * inner)
        if attained > enough:
            break
        for k in range(size):
            before[k] = weights[k]
            weights[k] = max(weights[k] * abs(point[k]), 8.0 * shift)
    for k in range(size):
        point[k] = min(max(point[k], -1.0), 1.0)
    return best


@njit(nogil=True, cache=True, fastmath=FAST)
def quadratic_excess(  # type: ignore[no-untyped-def]
    rows, lams, index, middle, reach, start, size, const, linear, centre, width, bound, slack, law, gradient, hessian,
    weights, before, factor, point, columns, means, variances, products,
):  # fmt: skip
    """Bound ``max w(p) - bound * ||p||`` over the box from above, rounding included; ``slack`` is that of the linear bound.

    Args of note: ``lams`` are the duals of the undecided rows, in the order of ``index[start:]``;
    ``const + linear'(p - centre)`` are the decided rows; ``law`` is the guess of the maximiser in units of the box, each in
    [-1, 1], and ``1 - law^2`` its variance. ``gradient`` and ``hessian`` (lower triangle) hold a quadratic in the same units
    that is added; on return they hold the whole, and ``point`` its maximiser.
    """
    r = centre.shape[0]
    norm = 0.0
    radius = 0.0
    for k in range(r):
        norm += centre[k] * centre[k]
        radius += width[k] * width[k]
    norm = np.sqrt(norm)
    along = 0.0
    for k in range(r):
        along += abs(centre[k]) * width[k]
    farthest = norm + along / norm
    # ||p|| >= e'p + bend * d'(I - ee')d with d = p - centre, e = centre / norm
    bend = 0.0
    if radius > 0.0:
        bend = 1.0 / (np.sqrt(farthest * farthest + radius) + farthest)
    turn = 2.0 * bound * bend
    total = const - bound * norm
    magnitude = abs(const) + bound * (norm + farthest + radius * bend)
    for k in range(r):
        e = centre[k] / norm
        magnitude += abs(linear[k]) * width[k] + abs(gradient[k])
        gradient[k] += (linear[k] - bound * e) * width[k]
        for j in range(k + 1):
            magnitude += abs(hessian[k, j])
            hessian[k, j] += turn * width[k] * width[j] * e * centre[j] / norm
        hessian[k, k] -= turn * width[k] * width[k]
    # Rows are turned into columns, so that all sums run along memory.
    for s in range(size):
        i = index[start + s]
        means[s] = 0.0
        variances[s] = 0.0
        for k in range(r):
            columns[k, s] = rows[i, k]
    for k in range(r):
        ahead = width[k] * law[k]
        square = width[k] * width[k] * (1.0 - law[k] * law[k])
        for s in range(size):
            x = columns[k, s]
            means[s] += x * ahead
            variances[s] += x * x * square
    steepest = 0.0
    for s in range(size):
        rho = reach[start + s]
        lam = lams[s]
        c0, c1, c2 = _row_majorant(middle[start + s], rho, lam > 0.0, means[s], variances[s])
        total += lam * c0
        magnitude += abs(lam) * (abs(c0) + abs(c1) * rho + c2 * rho * rho)
        steepest = max(steepest, c2 * rho)
        means[s] = lam * c1
        variances[s] = 2.0 * lam * c2
    for k in range(r):
        first = 0.0
        for s in range(size):
            first += means[s] * columns[k, s]
            products[s] = variances[s] * columns[k, s]
        gradient[k] += first * width[k]
        for j in range(k + 1):
            second = 0.0
            for s in range(size):
                second += products[s] * columns[j, s]
            hessian[k, j] += second * width[k] * width[j]
    for k in range(r):
        for j in range(k):
            hessian[j, k] = hessian[k, j]
    # Errors of t and rho are enlarged by the slope of the parabolas; the sums have ``size`` terms.
    rounding = slack * (1.0 + 4.0 * steepest) + 1.2e-16 * (8.0 * size + 40.0 * r + 100.0) * magnitude
    return total + rounding + _largest_quadratic(gradient, hessian, weights, before, factor, point, -total - rounding)
