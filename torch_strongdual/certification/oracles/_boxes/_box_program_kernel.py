"""Compiled: the certificate of a quadratic over a box, and the small matrices it needs."""

from __future__ import annotations

import numpy as np

from torch_strongdual.certification.oracles._boxes._compiled_kernel import small_part

__all__ = ["certified_value", "cholesky", "invert", "make_definite"]


@small_part
def cholesky(matrix, diagonal, shift, factor):  # type: ignore[no-untyped-def]
    """Lower factor of ``diag(diagonal) - matrix - shift``; whether it exists. Its diagonal is stored inverted."""
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
                factor[i, i] = 1.0 / np.sqrt(total)
            else:
                factor[i, j] = total * factor[j, j]
    return True


@small_part
def invert(factor, inverse):  # type: ignore[no-untyped-def]
    """Inverse (lower triangular) of a factor whose diagonal is stored inverted."""
    size = factor.shape[0]
    for j in range(size):
        inverse[j, j] = factor[j, j]
        for i in range(j + 1, size):
            total = 0.0
            for k in range(j, i):
                total -= factor[i, k] * inverse[k, j]
            inverse[i, j] = total * factor[i, i]


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
    size = gradient.shape[0]
    value = 0.0
    for k in range(size):
        product = weights[k] * point[k]
        for j in range(size):
            product -= hessian[k, j] * point[j]
        value += point[k] * (gradient[k] - 0.5 * product) + 0.5 * weights[k]
        value += abs(gradient[k] - product) * (1.0 + abs(point[k]))
    return value
