"""Positive semidefiniteness proven in floating point."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles.row_space import UNIT_ROUNDOFF

__all__ = ["gamma", "semidefinite_shift"]

FloatArray = NDArray[np.float64]

_TINY = float(np.finfo(np.float64).tiny)


def gamma(num_operations: int) -> float:
    """Higham's ``k u / (1 - k u)`` for 2 k: bounds the relative error of sums and products of ``k`` operations, any order."""
    return 2.0 * num_operations * UNIT_ROUNDOFF / (1.0 - 2.0 * num_operations * UNIT_ROUNDOFF)


def semidefinite_shift(matrix: FloatArray) -> float:
    r"""Return a proven :math:`\delta` with :math:`K + \delta I \succeq 0`, small if K is semidefinite; ``inf`` if not found.

    If the floating-point Cholesky factorisation of a symmetric H of order m runs to its end, its factor has
    :math:`R'R = H + E` with :math:`\|E\|_2 \le \gamma_{m+1} / (1 - \gamma_{m+1}) \operatorname{tr} H` (Demmel; Rump), so that
    :math:`H \succeq -\|E\| I`. It is tried on :math:`H = K + \delta_0 I` for growing shifts. Only the lower triangle is read.

    Example:
        >>> 0.0 <= semidefinite_shift(np.array([[1.0, 1.0], [1.0, 1.0]])) < 1e-13
        True

    References:
        Rump, "Verification of positive definiteness", BIT 46, 2006, theorem 2.3.
    """
    size = len(matrix)
    diagonal = np.diagonal(matrix)
    if not np.isfinite(matrix).all():
        return math.inf
    total = float(np.abs(diagonal).sum())
    shift: float = 0.0
    for exponent in range(12):
        shifted = matrix.copy()
        shifted[np.diag_indices(size)] = diagonal + shift
        try:
            factor = np.linalg.cholesky(shifted)
        except np.linalg.LinAlgError:
            shift = 4.0 * gamma(size + 3) * total * 8.0**exponent + _TINY
            continue
        if np.isfinite(factor).all():
            # gamma is doubled, which covers 1 - gamma, the addition of the shift to the diagonal and these few operations.
            return shift + gamma(size + 3) * (total + size * shift) + _TINY
    return math.inf
