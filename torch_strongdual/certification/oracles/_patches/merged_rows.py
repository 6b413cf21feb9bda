"""Distinct rows of a matrix of patches: equal and parallel ones are one row, zero ones none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles.row_space import UNIT_ROUNDOFF

__all__ = ["MergedRows"]

FloatArray = NDArray[np.float64]

_MANTISSA = 53


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergedRows:
    r"""Rows :math:`x_i = t_i y_{g(i)}`, exactly and with :math:`t_i > 0`.

    For positively homogeneous s then :math:`\sum_i \lambda_i s(x_i'u) = \sum_g (\sum_{g(i) = g} t_i \lambda_i) s(y_g'u)`.

    Args:
        rows: y, no two of them parallel as far as that can be told exactly, none of them zero; shape (m, d).
        groups: g, shape (n,); -1 where the row is zero.
        factors: t, shape (n,).
    """

    rows: FloatArray
    groups: NDArray[np.int64]
    factors: FloatArray

    @classmethod
    def of(cls, matrix: FloatArray) -> MergedRows:
        """Merge the rows of ``matrix``.

        A row of floating point numbers is a row of integers times a power of two. Divided by their greatest common
        divisor, parallel rows become equal, without rounding; rows whose integers would need more than 53 bits, or with
        entries beyond 2^500 or 2^-500, are left alone.

        Example:
            >>> merged = MergedRows.of(np.array([[1.0, 2.0], [0.0, 0.0], [1.5, 3.0], [1.0, -2.0]]))
            >>> merged.rows.tolist(), merged.groups.tolist(), merged.factors.tolist()
            ([[1.0, -2.0], [1.0, 2.0]], [1, -1, 1, 0], [1.0, 1.0, 1.5, 1.0])
        """
        if not np.isfinite(matrix).all():
            numbers = np.arange(len(matrix), dtype=np.int64)
            return cls(rows=matrix, groups=numbers, factors=np.ones(len(matrix)))
        primitive, factors = _primitive(matrix + 0.0)  # + 0.0: no negative zeros
        alive = primitive.any(axis=1)
        if not alive.any():
            return cls(rows=matrix[:1] * 0.0, groups=np.full(len(matrix), -1, dtype=np.int64), factors=factors)
        rows, inverse = np.unique(primitive[alive], axis=0, return_inverse=True)
        groups = np.full(len(matrix), -1, dtype=np.int64)
        groups[alive] = inverse.reshape(-1)
        # Rows keep about the size they have in the data: powers of two, so that nothing is rounded.
        sizes = np.zeros(len(rows))
        np.maximum.at(sizes, groups[alive], factors[alive])
        units = np.ldexp(1.0, np.frexp(sizes)[1] - 1)
        scaled = np.ones(len(matrix))
        scaled[alive] = factors[alive] / units[groups[alive]]
        return cls(rows=rows * units[:, None], groups=groups, factors=scaled)

    def summed(self, duals: FloatArray) -> FloatArray:  # (n, c) -> (m, c)
        """Dual variables of the merged rows."""
        total = np.zeros((len(self.rows), duals.shape[1]))
        alive = self.groups >= 0
        np.add.at(total, self.groups[alive], self.factors[alive, None] * duals[alive])
        return total

    def rounding(self, duals: FloatArray, relative_error: int) -> float:
        r"""Bound on what rounding in :meth:`summed` changes of :math:`\|\sum_i \lambda_i s(x_i'u)\|` on the unit ball.

        Args:
            duals: As for :meth:`summed`.
            relative_error: Of the entries of ``duals``, in units of 2^-53.
        """
        counts = np.bincount(self.groups[self.groups >= 0], minlength=len(self.rows))
        sizes = np.linalg.norm(self.summed(np.abs(duals)), axis=1)
        lengths = np.linalg.norm(self.rows, axis=1)
        # a sum of k products is off by at most (k + 1) u / (1 - (k + 1) u) times the sum of absolute values, each entry by its
        # own error, too; twice that covers the rounding of this bound, and the last term products that underflow
        lost = 2.0 * UNIT_ROUNDOFF * float(((counts + 8 + relative_error) * sizes) @ lengths)
        return float(lost + float(counts @ lengths) * duals.shape[1] * 5e-324)


def _primitive(matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Rows of coprime integers and their factors; rows that are too long for it as they are, with factor one."""
    mantissas, exponents = np.frexp(matrix)
    integers = np.ldexp(mantissas, _MANTISSA).astype(np.int64)  # exact
    lowest_bits = np.where(integers == 0, 1, integers & -integers)
    trailing = np.frexp(lowest_bits.astype(np.float64))[1] - 1
    is_zero = integers == 0
    low = np.where(is_zero, 10_000, exponents - _MANTISSA + trailing).min(axis=1, initial=10_000)
    high = np.where(is_zero, -10_000, exponents).max(axis=1, initial=-10_000)
    # Within 2^-500 and 2^500 no quotient of factors is too small to be exact.
    usable = (high - low <= _MANTISSA) & (low >= -500) & (high <= 500) & ~is_zero.all(axis=1)
    shift = np.where(usable, low, 0)
    whole = np.where(usable[:, None], np.ldexp(matrix, -shift[:, None]), 0.0).astype(np.int64)
    divisors = np.gcd.reduce(whole, axis=1) if matrix.shape[1] else np.ones(len(matrix), dtype=np.int64)
    divisors = np.where(divisors == 0, 1, divisors)
    primitive = np.where(usable[:, None], (whole // divisors[:, None]).astype(np.float64), matrix)
    factors = np.where(usable, np.ldexp(divisors.astype(np.float64), shift), 1.0)
    return primitive, factors
