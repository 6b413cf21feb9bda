"""Multipliers of the doubly nonnegative relaxation, of which few are not zero."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift

__all__ = ["ProductMultipliers"]

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProductMultipliers:
    r"""A form :math:`\sum_k m_k p_{i_k} p_{j_k} + \sum_i c_i z_i s_i + \sum_j (a_j + b_j'u) p_j` in p = (z, s), of length 2 n.

    With :math:`m \ge 0` and :math:`\|b_j\| \le a_j` it is nonnegative on true vectors p and u of norm one.

    Args:
        first: i, smaller than j, and not its partner: j is not i + n; (k,).
        second: j (k,).
        products: m (k,).
        crossed: c (n,), of any sign.
        cones: Rows (a_j, b_j), shape (2 n, 1 + r).
    """

    first: IndexArray
    second: IndexArray
    products: FloatArray
    crossed: FloatArray
    cones: FloatArray

    @classmethod
    def zero(cls, lift: Lift) -> ProductMultipliers:
        """Nothing but zeros."""
        none = np.zeros(0, dtype=np.intp)
        cones = np.zeros((2 * lift.num_rows, 1 + lift.rank))
        return cls(first=none, second=none, products=np.zeros(0), crossed=np.zeros(lift.num_rows), cones=cones)

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are."""
        return bool(all(np.isfinite(part).all() for part in (self.products, self.crossed, self.cones)))

    def scaled(self, factor: float) -> ProductMultipliers:
        """All of them times ``factor``."""
        return ProductMultipliers(
            first=self.first,
            second=self.second,
            products=factor * self.products,
            crossed=factor * self.crossed,
            cones=factor * self.cones,
        )

    def without_cones(self, rank: int) -> ProductMultipliers:
        """The same products with a u of another length."""
        return dataclasses.replace(self, cones=np.zeros((len(self.cones), 1 + rank)))

    def matrix(self, lift: Lift) -> FloatArray:
        """The symmetric matrix of the same form in lifted vectors, shape (1 + r + 2 n, 1 + r + 2 n)."""
        first = 1 + lift.rank
        result = np.zeros((lift.length, lift.length))
        result[first:, first:] = self.coupling().toarray()
        result[:first, first:] = 0.5 * self.cones.T
        result[first:, :first] = 0.5 * self.cones
        return result

    def coupling(self) -> Any:
        """Symmetric B with ``p'Bp`` the first two sums (its halves are exact), as a sparse matrix."""
        from scipy.sparse import coo_array

        number = len(self.crossed)
        samples = np.arange(number)
        rows = np.concatenate([self.first, samples])
        columns = np.concatenate([self.second, number + samples])
        values = 0.5 * np.concatenate([self.products, self.crossed])
        ends = np.concatenate([rows, columns]), np.concatenate([columns, rows])
        return coo_array((np.concatenate([values, values]), ends), shape=(2 * number, 2 * number)).tocsr()
