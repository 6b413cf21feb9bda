"""Rows that share a touching point: sums over groups are formed once, whatever their number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._sandwich.gram import GramSpace
from torch_strongdual.certification.oracles._sandwich.majorant import power_sums
from torch_strongdual.certification.oracles._sandwich.problem import UnitRows

__all__ = ["RowGroups"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]
BoolArray = NDArray[np.bool_]

_MAX_FREE = 3_000_000  # entries of the matrix of products up to which each row stands alone
_MAX_SUMS = 10_000_000  # entries of all groups' sums


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowGroups:
    """Weighted sums over groups of rows.

    Args:
        labels: Group of each row.
        is_above: Whether a group's weights are positive.
        weights: Sum of the weights of each group.
        rows: The rows, if each is a group of its own; else the groups' weighted sums of them.
        products: ``w`` of the rows, if each is a group of its own; else the groups' weighted sums of it.
        quartics: The groups' weighted sums of ``w w'``, flattened; empty if each row is a group.
        shares: Weight of each row in its group's touching point.
    """

    labels: IntArray
    is_above: BoolArray
    weights: FloatArray
    rows: FloatArray
    products: FloatArray
    quartics: FloatArray
    shares: FloatArray

    @classmethod
    def of(cls, space: GramSpace, problem: UnitRows, places: FloatArray) -> RowGroups:
        """Each row alone, or groups of one sign with similar ``places``."""
        if problem.rows.shape[0] * space.num_products > _MAX_FREE:
            return cls._tied(space, problem, _labels(space, problem, places))
        return cls(
            labels=np.arange(len(problem.weights)),
            is_above=problem.weights > 0,
            weights=problem.weights,
            rows=problem.rows,
            products=space.products(problem.rows),
            quartics=np.zeros((0, 0)),
            shares=np.ones(len(problem.weights)),
        )

    @classmethod
    def _tied(cls, space: GramSpace, problem: UnitRows, labels: IntArray) -> RowGroups:
        """The groups of these labels, each of rows of one sign."""
        count, size = int(labels.max(initial=-1)) + 1, space.num_products
        order = np.argsort(labels, kind="stable")
        starts = np.searchsorted(labels[order], np.arange(count + 1))
        rows, flats, quartics = np.zeros((count, space.rank)), np.zeros((count, size)), np.zeros((count, size * size))
        for group in range(count):
            members = order[starts[group] : starts[group + 1]]
            weights = problem.weights[members]
            rows[group] = weights @ problem.rows[members]
            flats[group], even = power_sums(space, problem.rows[members], weights, weights)
            quartics[group] = even.ravel()
        shares = np.abs(problem.weights)
        shares = shares / np.bincount(labels, shares, minlength=count)[labels]
        return cls(
            labels=labels,
            is_above=problem.weights[order[starts[:-1]]] > 0,
            weights=np.bincount(labels, problem.weights, minlength=count).astype(np.float64),
            rows=rows,
            products=flats,
            quartics=quartics,
            shares=shares,
        )

    @property
    def is_tied(self) -> bool:
        """Whether rows share touching points."""
        return self.quartics.size > 0

    @property
    def count(self) -> int:
        """Number of groups."""
        return len(self.weights)

    def means(self, values: FloatArray) -> FloatArray:  # (n,) -> (groups,)
        """Weighted means of a number of each row."""
        return np.bincount(self.labels, self.shares * values, minlength=self.count).astype(np.float64)

    def spread(self, values: FloatArray) -> FloatArray:  # (groups,) -> (n,)
        """The group's number for each row."""
        return values[self.labels]

    def linear(self, slopes: FloatArray) -> FloatArray:  # (groups,) -> (r,)
        """``sum_i weight_i slopes_i x_i``."""
        return (slopes if self.is_tied else self.weights * slopes) @ self.rows

    def means_along(self, mean: FloatArray) -> FloatArray:  # (r,) -> (groups,)
        """Derivatives of ``mean'b`` by the coefficients of :meth:`linear`."""
        along = self.rows @ mean
        return along if self.is_tied else self.weights * along

    def sums(self, squares: FloatArray, powers: FloatArray) -> tuple[FloatArray, FloatArray]:
        """``sum_i weight_i squares_i w_i`` and ``sum_i weight_i powers_i w_i w_i'``, coefficients one a group."""
        size = self.products.shape[1]
        if self.is_tied:
            return squares @ self.products, (powers @ self.quartics).reshape(size, size)
        return (self.weights * squares) @ self.products, (self.products * (self.weights * powers)[:, None]).T @ self.products

    def moments(self, matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Derivatives of ``e'P flat`` and ``tr P quartic`` of :meth:`sums` by their coefficients."""
        # The identity's coordinates are one where a product is a square: its rows of P sum to the second moments.
        if self.is_tied:
            return self.products @ (matrix @ self._identity()), self.quartics @ matrix.ravel()
        seconds, fourths = _row_moments(self.products, matrix, self._identity())
        return self.weights * seconds, self.weights * fourths

    def row_moments(self, problem: UnitRows, matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Second and fourth moments of ``x_i'u`` for every row."""
        space = GramSpace(len(problem.linear))
        step = max(1, 2**22 // space.num_products)
        parts = [
            _row_moments(space.products(problem.rows[start : start + step]), matrix, space.identity)
            for start in range(0, len(problem.rows), step)
        ]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _identity(self) -> FloatArray:
        rank = round((2 * self.products.shape[1] + 0.25) ** 0.5 - 0.5)
        return GramSpace(rank).identity


def _row_moments(products: FloatArray, matrix: FloatArray, identity: FloatArray) -> tuple[FloatArray, FloatArray]:
    return products @ (matrix @ identity), np.einsum("ij,ij->i", products @ matrix, products)


def _labels(space: GramSpace, problem: UnitRows, places: FloatArray) -> IntArray:
    """Number of each row's group: neighbours by ``places`` among the rows of one sign."""
    number = max(4, min(128, _MAX_SUMS // space.num_products**2 // 2))
    above = problem.weights > 0
    labels = np.zeros(len(above), dtype=np.intp)
    count = 0
    for side in (np.flatnonzero(above), np.flatnonzero(~above)):
        parts = np.array_split(side[np.argsort(places[side], kind="stable")], min(number, len(side))) if len(side) else []
        for part in parts:
            labels[part] = count
            count += 1
    return labels
