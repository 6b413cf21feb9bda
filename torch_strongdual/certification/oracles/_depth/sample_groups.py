r"""Samples with duals of opposite signs, bounded together: one positive dual with negative ones around it.

A line above :math:`-(g_j)_+` lets a negative combination of features cancel what a negative dual takes without losing anything
at positive duals nearby, so that noise in n samples costs O(n) instead of O(sqrt n). Write :math:`y(g) = \sum_j c_j g_j`. If s
is convex, positively homogeneous and monotone with slopes of at most one, then :math:`s(g_i) - \sum_j c_j s(g_j) \le s(g_i) -
s(y(g)) \le (g_i - y(g))_+`: convex, and small where row i is almost a combination of its neighbours. One activation deeper,

.. math:: (s(h_i) - \textstyle\sum_j c_j s(h_j))_+ \le (h_i - y(h))_+, \qquad
          (\textstyle\sum_j c_j s(h_j) - s(h_i))_+ \le (y(h) - h_i)_+ + \textstyle\sum_j c_j s(h_j) - s(y(h)).

These are more rows for the leaves. Behind several activations only pairs stay convex: with a single neighbour the sum vanishes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SampleGroups"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_MOST_NEIGHBOURS = 6
_LOCALITY = 0.1
_ROUNDOFF = 2.0**-53


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleGroups:
    """Groups of samples; members are listed one after the other.

    Args:
        centres: i, of shape (p,): one sample a group, with positive duals (any are valid).
        groups: Group of each member, shape (m,).
        members: j (m,): samples with negative duals (any are valid).
        weights: c (m,), nonnegative: how much of j is matched with one unit of i.
        num_samples: Number n of samples.
    """

    centres: IntArray
    groups: IntArray
    members: IntArray
    weights: FloatArray
    num_samples: int

    @property
    def number(self) -> int:
        """How many groups there are."""
        return len(self.centres)

    @classmethod
    def none(cls, num_samples: int) -> SampleGroups:
        """No groups."""
        empty = np.zeros(0, dtype=np.int64)
        return cls(centres=empty, groups=empty, members=empty, weights=np.zeros(0), num_samples=num_samples)

    @classmethod
    def of_pairs(cls, first: IntArray, second: IntArray, ratios: FloatArray, num_samples: int) -> SampleGroups:
        """Groups of two."""
        return cls(centres=first, groups=np.arange(len(first)), members=second, weights=ratios, num_samples=num_samples)

    def joined(self, other: SampleGroups) -> SampleGroups:
        """These groups, then ``other``."""
        return SampleGroups(
            centres=np.concatenate([self.centres, other.centres]),
            groups=np.concatenate([self.groups, self.number + other.groups]),
            members=np.concatenate([self.members, other.members]),
            weights=np.concatenate([self.weights, other.weights]),
            num_samples=self.num_samples,
        )

    def subset(self, kept: NDArray[np.bool_]) -> SampleGroups:
        """The groups where ``kept`` (p,) is true."""
        numbers = np.cumsum(kept) - 1
        used = kept[self.groups]
        return SampleGroups(
            centres=self.centres[kept],
            groups=numbers[self.groups[used]],
            members=self.members[used],
            weights=self.weights[used],
            num_samples=self.num_samples,
        )

    @classmethod
    def neighbours(
        cls,
        rows: FloatArray,  # shape: (n, r)
        duals: FloatArray,  # shape: (n,)
        *,
        most_pairs: int,
        most_stars: int,
    ) -> SampleGroups:
        """Samples whose rows point in similar directions.

        Args:
            rows: Data.
            duals: Whose signs decide who is matched with whom.
            most_pairs: How many groups of two to make: for each sample the nearest of the other sign.
            most_stars: How many groups of several to make: positive samples as nonnegative combinations of negative ones.
        """
        norms = np.linalg.norm(rows, axis=1)
        plus, minus = np.flatnonzero((duals > 0) & (norms > 0)), np.flatnonzero((duals < 0) & (norms > 0))
        if not len(plus) or not len(minus):
            return cls.none(len(rows))
        cosines = (rows[plus] / norms[plus, None]) @ (rows[minus] / norms[minus, None]).T
        found = _pairs(cosines, most_pairs)
        found += _stars(rows[plus], rows[minus], cosines, most_stars)
        found = [(i, j, c) for i, j, c in ((i, *_scaled(i, j, c, norms[plus], norms[minus])) for i, j, c in found) if len(j)]
        if not found:
            return cls.none(len(rows))
        sizes = np.array([len(members) for _, members, _ in found])
        return cls(
            centres=plus[np.array([centre for centre, _, _ in found])],
            groups=np.repeat(np.arange(len(found)), sizes),
            members=minus[np.concatenate([members for _, members, _ in found])],
            weights=np.concatenate([weights for _, _, weights in found]),
            num_samples=len(rows),
        )

    @property
    def sizes(self) -> IntArray:
        """Number of members of each group."""
        return np.bincount(self.groups, minlength=self.number).astype(np.int64)

    @property
    def _rounded_up(self) -> float:
        """Makes an upper bound of a sum over centres and members, its products rounded."""
        return 1.0 + 4.0 * (len(self.groups) + self.number + 8) * _ROUNDOFF

    def values(self, hidden: FloatArray, sign: float, bend: float) -> FloatArray:  # (k, n) -> (k, p)
        """What one unit of flow adds at pre-activations ``hidden`` to a leaf with ``sign``; see :class:`Leaf`."""
        if not self.number:
            return np.zeros((len(hidden), 0))
        begins = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        combined = np.add.reduceat(hidden[:, self.members] * self.weights, begins, axis=1)
        result: FloatArray = np.maximum(sign * (hidden[:, self.centres] - combined), 0.0)
        if sign < 0 and (self.sizes > 1).any():
            apart = np.add.reduceat(np.maximum(hidden[:, self.members], 0.0) * self.weights, begins, axis=1)
            result += np.where(self.sizes > 1, bend * (apart - np.maximum(combined, 0.0)), 0.0)
        return result

    def combinations(self, rows: FloatArray) -> FloatArray:  # (n, r) -> (p, r)
        """``sum_j c_j x_j``, rounded."""
        result = np.zeros((self.number, rows.shape[1]))
        np.add.at(result, self.groups, self.weights[:, None] * rows[self.members])
        return result

    def rounding(self, rows: FloatArray) -> FloatArray:  # (n, r) -> (p,)
        """Bounds on what :meth:`combinations`, and their differences from the centres, are off by, in norm."""
        norms = np.linalg.norm(rows, axis=1)
        sizes = norms[self.centres] + np.bincount(
            self.groups, weights=self.weights * norms[self.members], minlength=self.number
        )
        operations = self.sizes + 2.0
        bound: FloatArray = 2.0 * operations * _ROUNDOFF * sizes + operations * rows.shape[1] * math.ulp(0.0)
        return bound

    def gains(self, prices: FloatArray) -> FloatArray:  # (n,) -> (p,)
        """What one unit of flow takes from a sum of ``prices`` times duals."""
        result: FloatArray = prices[self.centres] - np.bincount(
            self.groups, weights=self.weights * prices[self.members], minlength=self.number
        )
        return result

    def left_over(self, duals: FloatArray, flows: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Lower and upper bounds on what ``flows`` (p,) leave of the duals, exact arithmetic included.

        Positive ones give their flow, negative ones flow times weight.
        """
        given = self._sum_over_members(flows)
        value = duals - self._sum_over_centres(flows) + given
        used = (flows > 0).astype(np.float64)
        touched = self._sum_over_centres(used) + np.bincount(
            self.members, weights=used[self.groups], minlength=self.num_samples
        )
        error = 2.0 * (touched + 4.0) * _ROUNDOFF * (np.abs(duals) + self.sample_slopes(flows))
        error = np.where(touched > 0, error + (touched + 1.0) * math.ulp(0.0), 0.0)
        return value - error, value + error

    def sample_slopes(self, flows: FloatArray) -> FloatArray:  # (p,) -> (n,)
        """Lipschitz constants that one difference of each group adds to each sample."""
        return (self._sum_over_centres(flows) + self._sum_over_members(flows)) * self._rounded_up

    def member_duals(self, flows: FloatArray) -> FloatArray:  # (p,) -> (n,)
        """``sum F c`` over the groups of several in which a sample is a member, rounded up."""
        several = self._sum_over_members(np.where(self.sizes > 1, flows, 0.0))
        return np.where(several > 0, several * self._rounded_up + 1e-300, 0.0)

    def _sum_over_centres(self, values: FloatArray) -> FloatArray:
        return np.bincount(self.centres, weights=values, minlength=self.num_samples).astype(np.float64)

    def _sum_over_members(self, values: FloatArray) -> FloatArray:
        products = self.weights * values[self.groups]
        return np.bincount(self.members, weights=products, minlength=self.num_samples).astype(np.float64)


_Found = list[tuple[int, IntArray, FloatArray]]  # centre, members, weights on rows of norm one


def _pairs(cosines: FloatArray, at_most: int) -> _Found:
    """For each sample the nearest of the other sign."""
    each = max(1, min(_MOST_NEIGHBOURS, at_most // sum(cosines.shape)))
    chosen = np.zeros(cosines.shape, dtype=bool)
    for axis in (0, 1):
        kept = min(each, cosines.shape[axis])
        nearest = np.argpartition(-cosines, kept - 1, axis=axis)
        np.put_along_axis(chosen, np.take(nearest, np.arange(kept), axis=axis), values=True, axis=axis)
    i, j = np.nonzero(chosen & (cosines > 0.0))
    order = np.argsort(-cosines[i, j], kind="stable")[:at_most]
    return [(int(a), np.array([b]), np.ones(1)) for a, b in zip(i[order], j[order], strict=True)]


def _stars(plus: FloatArray, minus: FloatArray, cosines: FloatArray, at_most: int) -> _Found:
    """Each positive sample as a nonnegative combination of the nearest negative ones, for two sizes of neighbourhoods."""
    from scipy.optimize import nnls

    rank = plus.shape[1]
    plus = plus / np.linalg.norm(plus, axis=1)[:, None]
    minus = minus / np.linalg.norm(minus, axis=1)[:, None]
    found: _Found = []
    for size in (rank + 1, 3 * rank):
        kept = min(size, len(minus))
        if kept < 2:
            break
        nearest = np.argpartition(-cosines, kept - 1, axis=1)[:, :kept]
        for centre, around in enumerate(nearest[: max(0, at_most - len(found))]):
            distances = np.sqrt(np.maximum(2.0 - 2.0 * cosines[centre, around], 0.0))
            system = np.vstack([minus[around].T, _LOCALITY * distances])
            try:
                weights, _ = nnls(system, np.append(plus[centre], 0.0))
            except RuntimeError:
                continue
            used = weights > 1e-3
            if used.sum() > 1:
                found.append((centre, around[used], weights[used]))
    return found


def _scaled(
    centre: int, members: IntArray, weights: FloatArray, plus_norms: FloatArray, minus_norms: FloatArray
) -> tuple[IntArray, FloatArray]:
    """Weights for rows as they are; no members if these are no usable numbers."""
    scaled = weights * (plus_norms[centre] / minus_norms[members])
    usable = bool(np.isfinite(scaled).all() and (scaled > 0).all())
    return (members, scaled) if usable else (members[:0], scaled[:0])
