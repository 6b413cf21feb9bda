"""Compiled: the certificate of a quadratic over a box, and the small matrices it needs."""

from __future__ import annotations

import numpy as np

from torch_strongdual.certification.oracles._boxes._compiled_kernel import small_part

__all__ = ["certified_value", "cholesky", "invert", "make_definite"]


# Numbers without a sign, since every index with one is first checked for being counted from the end.
_ONE = np.uint64(1)


@small_part
def cholesky(matrix, diagonal, shift, factor):  # type: ignore[no-untyped-def]
    """Lower factor of ``diag(diagonal) - matrix - shift``; whether it exists. Its diagonal is stored inverted."""
    size = np.uint64(matrix.shape[0])
    for j in range(size):
        pivots = factor[j]
        total = diagonal[j] - shift - matrix[j, j]
        for k in range(j):
            total -= pivots[k] * pivots[k]
        if total <= 0.0:
            return False
        scale = 1.0 / np.sqrt(total)
        pivots[j] = scale
        for i in range(j + _ONE, size):
            row = factor[i]
            total = -matrix[i, j]
            for k in range(j):
                total -= row[k] * pivots[k]
            row[j] = total * scale
    return True


@small_part
def invert(factor, inverse):  # type: ignore[no-untyped-def]
    """Inverse, transposed (upper triangular), of a factor whose diagonal is stored inverted."""
    size = np.uint64(factor.shape[0])
    for j in range(size):
        found = inverse[j]
        found[j] = factor[j, j]
        for i in range(j + _ONE, size):
            row = factor[i]
            total = 0.0
            for k in range(j, i):
                total -= row[k] * found[k]
            found[i] = total * row[i]


@small_part
def make_definite(hessian, weights, shift, factor):  # type: ignore[no-untyped-def]
    """Raise the weights until ``diag(weights) - hessian`` has a factor."""
    size = hessian.shape[0]
    share = 0.05
    while not cholesky(hessian, weights, shift, factor):
        for k in range(size):
            total = 0.0
            for j in range(size):
                total += abs(hessian[k, j])
            weights[k] += share * total + 8.0 * shift
        share *= 3.0
        if share > 50.0:
            return False
    return True


@small_part
def certified_value(gradient, hessian, weights, point):  # type: ignore[no-untyped-def]
    r"""Bound of ``g'v + v'Hv / 2`` over ``|v_k| <= 1`` that ``M = diag(weights) - H >= 0`` and any y prove.

    ``g'v + v'Hv / 2 <= g'v - v'Mv / 2 + tr(D) / 2``, and with ``r = g - My`` that is at most
    ``g'y - y'My / 2 + sum |r_k| (1 + |y_k|) + tr(D) / 2``, so y need not be exact.
    """
    size = np.uint64(gradient.shape[0])
    value = 0.0
    for k in range(size):
        row = hessian[k]
        product = weights[k] * point[k]
        for j in range(size):
            product -= row[j] * point[j]
        value += point[k] * (gradient[k] - 0.5 * product) + 0.5 * weights[k]
        value += abs(gradient[k] - product) * (1.0 + abs(point[k]))
    return value
