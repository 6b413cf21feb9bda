"""Largest singular values with a proof: a computed decomposition is never trusted, only checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles.row_space import UNIT_ROUNDOFF

__all__ = ["SpectralNorms"]

FloatArray = NDArray[np.float64]

_UNDERFLOW = 1e-150  # squares of numbers below it vanish; entries are scaled to moderate size before


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpectralNorms:
    r"""Singular value decompositions of a stack of matrices, and a proven upper bound on each spectral norm.

    With the computed factors, :math:`\|A\| \le \|U\| \max(S) \|V\| + \|A - U S V'\|_F`, where
    :math:`\|U\|^2 \le 1 + \|U'U - I\|_F`. The right side is evaluated with a bound on its own rounding, so it holds
    whatever the decomposition is worth.

    Args:
        upper: Proven for exactly the matrices given, shape ``(k,)``.
        singular: Computed singular values, largest first, shape ``(k, m)``, ``m = min(rows, columns)``.
        left: Computed left singular vectors as columns, shape ``(k, rows, m)``.
        right: Computed right singular vectors as rows, shape ``(k, m, columns)``.
    """

    upper: FloatArray
    singular: FloatArray
    left: FloatArray
    right: FloatArray

    @classmethod
    def of(cls, matrices: FloatArray) -> SpectralNorms:  # (k, rows, columns)
        """Decompose finite ``matrices`` with entries of moderate size.

        Example:
            >>> norms = SpectralNorms.of(np.array([[[3.0, 0.0], [0.0, 4.0]]]))
            >>> bool(4.0 <= norms.upper[0] <= 4.0 + 1e-13)
            True
        """
        number, rows, columns = matrices.shape
        size = min(rows, columns)
        frobenius = _frobenius(matrices)
        try:
            left, singular, right = np.linalg.svd(matrices, full_matrices=False)
        except np.linalg.LinAlgError:  # did not converge: the Frobenius norm is a bound, too
            empty = np.zeros((number, rows, 0)), np.zeros((number, 0)), np.zeros((number, 0, columns))
            return cls(upper=frobenius, left=empty[0], singular=empty[1], right=empty[2])
        scaled = left * singular[:, None, :]
        # |fl(A - U S V') - (A - U S V')| <= gamma_{m+2} (|A| + |U| S |V'|), entry by entry
        rounding = 2.0 * (size + 4) * UNIT_ROUNDOFF * (frobenius + _frobenius(scaled) * _frobenius(right))
        residual = _frobenius(matrices - scaled @ right) + rounding
        stretch = _norm_of_frame(np.swapaxes(left, 1, 2)) * _norm_of_frame(right)
        largest = singular[:, 0] if size else np.zeros(number)
        upper = (stretch * largest + residual) * (1.0 + 8 * UNIT_ROUNDOFF) + _UNDERFLOW
        return cls(upper=upper, singular=singular, left=left, right=right)


def _frobenius(matrices: FloatArray) -> FloatArray:  # (k, rows, columns) -> (k,)
    """Frobenius norms, rounded up."""
    number, rows, columns = matrices.shape
    norms: FloatArray = np.linalg.norm(matrices.reshape(number, -1), axis=1)
    result: FloatArray = norms * (1.0 + 2.0 * (rows * columns + 4) * UNIT_ROUNDOFF) + _UNDERFLOW
    return result


def _norm_of_frame(frames: FloatArray) -> FloatArray:  # (k, m, length) -> (k,)
    """Upper bound on the spectral norm of ``frames`` with nearly orthonormal rows."""
    _, size, length = frames.shape
    defect = _frobenius(frames @ np.swapaxes(frames, 1, 2) - np.eye(size))
    defect = defect + 2.0 * (length + 4) * UNIT_ROUNDOFF * (_frobenius(frames) ** 2 + size)
    result: FloatArray = np.sqrt(1.0 + defect) * (1.0 + 4 * UNIT_ROUNDOFF)
    return result
