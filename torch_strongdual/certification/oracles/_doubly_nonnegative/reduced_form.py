"""The quadratic form ``e'(C + S)e`` of the safe bound, from dense or from sparse multipliers."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._doubly_nonnegative.contraction import Contraction
from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift
from torch_strongdual.certification.oracles._doubly_nonnegative.product_multipliers import ProductMultipliers
from torch_strongdual.certification.oracles._verified_psd import gamma

__all__ = ["AbstractForm", "DenseForm", "SparseForm"]

FloatArray = NDArray[np.float64]


class AbstractForm(ABC):
    """``e'(C + S)e`` of lifted vectors e, where ``e'Se >= 0`` for every true one."""

    @abstractmethod
    def reduced(self) -> FloatArray:
        r"""``E'(C + S)E``, symmetric to the bit, off by at most :math:`\gamma_{4 length} |E|'|C + S||E|` entry by entry."""

    @abstractmethod
    def subtract(self, price: float) -> None:
        """Subtract ``price`` times the sum of all ``z_i s_i``, which is zero."""

    @abstractmethod
    def magnitude(self, sizes: FloatArray) -> float:
        """``sizes'|C + S|sizes``."""


class DenseForm(AbstractForm):
    """From a full matrix of multipliers.

    Args:
        lift: Gives C and E.
        multipliers: Any; moved to where they are safe. Only the upper triangle is read, shape (1 + r + 2 n, 1 + r + 2 n).
    """

    def __init__(self, lift: Lift, multipliers: FloatArray) -> None:
        self._lift, self._matrix = lift, _safe_matrix(lift, multipliers)
        self._contraction = Contraction(lift, device=torch.device("cpu"))

    def reduced(self) -> FloatArray:
        """See :meth:`AbstractForm.reduced`."""
        result: FloatArray = self._contraction(torch.from_numpy(self._matrix)).numpy()
        return result

    def subtract(self, price: float) -> None:
        """See :meth:`AbstractForm.subtract`."""
        samples = np.arange(self._lift.num_rows)
        active, inactive = self._lift.active.start + samples, self._lift.inactive.start + samples
        self._matrix[active, inactive] -= 0.5 * price
        self._matrix[inactive, active] = self._matrix[active, inactive]

    def magnitude(self, sizes: FloatArray) -> float:
        """See :meth:`AbstractForm.magnitude`."""
        return float(sizes @ np.abs(self._matrix) @ sizes)


class SparseForm(AbstractForm):
    """From multipliers of which few are not zero: no matrix larger than the reduced one is formed.

    Args:
        lift: Gives C and E.
        multipliers: Any; moved to where they are safe.
    """

    def __init__(self, lift: Lift, multipliers: ProductMultipliers) -> None:
        self._lift = lift
        self._multipliers = dataclasses.replace(multipliers, products=np.maximum(multipliers.products, 0.0))
        cross = 0.5 * multipliers.cones
        lengths = np.linalg.norm(cross[:, 1:], axis=1) * (1.0 + gamma(lift.rank + 8))
        cross[:, 0] = np.maximum(cross[:, 0], lengths)
        cross[: lift.num_rows, 0] += 0.5 * lift.weights
        if lift.bilinear is not None:
            cross[: len(lift.bilinear), 1 + lift.rank - lift.num_outputs :] += 0.5 * lift.bilinear
        self._cross = cross  # (2 n, 1 + r): rows of z and s, columns of 1 and u
        on = lift.signs[:, None] > 0
        self._slopes = np.concatenate([np.where(on, lift.rows, 0.0), np.where(on, 0.0, -lift.rows)])
        self._open = lift.signs == 0

    def reduced(self) -> FloatArray:
        """See :meth:`AbstractForm.reduced`."""
        from scipy.sparse import tril

        lift, coupling = self._lift, self._multipliers.coupling()
        number, first = lift.num_rows, 1 + lift.rank
        result = np.empty((first + int(self._open.sum()),) * 2)
        blocks = coupling[:number] + coupling[number:]
        blocks = tril(blocks[:, :number] + blocks[:, number:], format="csr")[self._open][:, self._open]
        result[first:, first:] = (blocks + tril(blocks, -1).T).toarray()
        tilted = self._cross.copy()
        tilted[:, 1:] += coupling @ self._slopes
        result[first:, :first] = (tilted[:number] + tilted[number:])[self._open]
        result[:first, first:] = result[first:, :first].T
        # u'Q'BQu + 2 u'Q'(cross of u), Q the slopes.
        corner = self._slopes.T @ (tilted[:, 1:] + self._cross[:, 1:])
        result[0, 0] = 0.0
        result[1:first, 1:first] = 0.5 * (corner + corner.T)
        result[1:first, 0] = result[0, 1:first] = self._slopes.T @ self._cross[:, 0] + 0.5 * lift.linear
        return result

    def subtract(self, price: float) -> None:
        """See :meth:`AbstractForm.subtract`."""
        self._multipliers = dataclasses.replace(self._multipliers, crossed=self._multipliers.crossed - price)

    def magnitude(self, sizes: FloatArray) -> float:
        """See :meth:`AbstractForm.magnitude`."""
        first = 1 + self._lift.rank
        head, tail = sizes[:first], sizes[first:]
        crossed = 2.0 * float(tail @ np.abs(self._cross) @ head) + float(np.abs(self._lift.linear) @ head[1:]) * float(head[0])
        return crossed + float(tail @ (abs(self._multipliers.coupling()) @ tail))


def _safe_matrix(lift: Lift, multipliers: FloatArray) -> FloatArray:
    """``C + S``, symmetric to the bit, S of the signs that make ``e'Se >= 0``."""
    first, samples = 1 + lift.rank, np.arange(lift.num_rows)
    free = multipliers[lift.active.start + samples, lift.inactive.start + samples]
    products = np.triu(np.maximum(multipliers[first:, first:], 0.0))
    products[samples, lift.num_rows + samples] = free
    vectors = multipliers[1:first, first:]
    heights = np.maximum(multipliers[0, first:], np.linalg.norm(vectors, axis=0) * (1.0 + gamma(lift.rank + 8)))
    safe = np.zeros((lift.length, lift.length))
    safe[first:, first:] = products + np.triu(products, 1).T
    safe[1:first, first:], safe[first:, 1:first] = vectors, vectors.T
    safe[0, first:], safe[first:, 0] = heights, heights
    return safe + lift.objective
