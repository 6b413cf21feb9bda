r"""Pairs of samples with duals of opposite signs, bounded together.

A line above :math:`-(g_j)_+` lets a negative combination of features cancel what a negative dual takes without losing anything
at positive duals nearby, so that noise in n samples costs O(n) instead of O(sqrt n). Together they are at most
:math:`s(g_i) - r s(g_j) \le (g_i - r g_j)_+`, for monotone s with slopes of at most one: convex, and small for neighbours. It
passes through activations, :math:`(\pm s(h_i) \mp r s(h_j))_+ \le (\pm h_i \mp r h_j)_+`, and ends as one more row
:math:`\pm (x_i - r x_j)` with a positive dual in the leaves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SamplePairs"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_MOST_NEIGHBOURS = 6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SamplePairs:
    """Pairs ``(i, j)`` and ratios r.

    Args:
        first: i, of shape (p,): samples with positive duals.
        second: j (p,): samples with negative duals.
        ratios: r (p,), positive: how much of j is matched with one unit of i.
        num_samples: Number n of samples.
    """

    first: IntArray
    second: IntArray
    ratios: FloatArray
    num_samples: int

    @property
    def number(self) -> int:
        """How many pairs there are."""
        return len(self.first)

    @classmethod
    def none(cls, num_samples: int) -> SamplePairs:
        """No pairs."""
        empty = np.zeros(0, dtype=np.int64)
        return cls(first=empty, second=empty, ratios=np.zeros(0), num_samples=num_samples)

    @classmethod
    def neighbours(cls, rows: FloatArray, duals: FloatArray, *, at_most: int) -> SamplePairs:  # shapes: (n, r), (n,)
        """Samples whose rows point in similar directions, the nearest of the other sign for each of them."""
        norms = np.linalg.norm(rows, axis=1)
        plus, minus = np.flatnonzero((duals > 0) & (norms > 0)), np.flatnonzero((duals < 0) & (norms > 0))
        if not len(plus) or not len(minus):
            return cls.none(len(rows))
        cosines = (rows[plus] / norms[plus, None]) @ (rows[minus] / norms[minus, None]).T
        each = max(1, min(_MOST_NEIGHBOURS, at_most // (len(plus) + len(minus))))
        chosen = np.zeros(cosines.shape, dtype=bool)
        for axis in (0, 1):
            kept = min(each, cosines.shape[axis])
            nearest = np.argpartition(-cosines, kept - 1, axis=axis)
            np.put_along_axis(chosen, np.take(nearest, np.arange(kept), axis=axis), values=True, axis=axis)
        i, j = np.nonzero(chosen & (cosines > 0.0))
        order = np.argsort(-cosines[i, j], kind="stable")[:at_most]
        first, second = plus[i[order]], minus[j[order]]
        ratios = norms[first] / norms[second]
        usable = np.isfinite(ratios) & (ratios > 0)
        return cls(first=first[usable], second=second[usable], ratios=ratios[usable], num_samples=len(rows))

    def differences(self, rows: FloatArray) -> FloatArray:  # (n, r) -> (p, r)
        """``x_i - r x_j``, rounded."""
        result: FloatArray = rows[self.first] - self.ratios[:, None] * rows[self.second]
        return result

    def rounding(self, rows: FloatArray) -> FloatArray:  # (n, r) -> (p,)
        """Bounds on what :meth:`differences` is off by, in norm."""
        sizes = np.linalg.norm(rows[self.first], axis=1) + self.ratios * np.linalg.norm(rows[self.second], axis=1)
        bound: FloatArray = 4.0 * 2.0**-53 * sizes + rows.shape[1] * math.ulp(0.0)
        return bound

    def taken(self, flows: FloatArray) -> FloatArray:  # (p,) -> (n,)
        """What ``flows`` take from each sample's dual: from positive ones flow, from negative ones minus flow times ratio."""
        return self._sum(self.first, flows) - self._sum(self.second, self.ratios * flows)

    def left_over(self, duals: FloatArray, flows: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Lower and upper bounds on the duals minus :meth:`taken`, exact arithmetic included."""
        value = duals - self.taken(flows)
        size = np.abs(duals) + self.sample_slopes(flows)
        used = (flows > 0).astype(np.float64)
        touched: FloatArray = self._sum(self.first, used) + self._sum(self.second, used)
        error = 2.0 * (touched + 4.0) * 2.0**-53 * size + (touched + 1.0) * math.ulp(0.0)
        error = np.where(touched > 0, error, 0.0)
        return value - error, value + error

    def sample_slopes(self, flows: FloatArray) -> FloatArray:  # (p,) -> (n,)
        """Lipschitz constants that the pairs add to each sample."""
        added = self._sum(self.first, flows) + self._sum(self.second, self.ratios * flows)
        return added * (1.0 + 1e-12)

    def _sum(self, samples: IntArray, values: FloatArray) -> FloatArray:
        """Sum of ``values`` of the pairs of each sample."""
        return np.bincount(samples, weights=values, minlength=self.num_samples).astype(np.float64)
