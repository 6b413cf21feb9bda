"""Gram matrices of polynomials of degree four on the unit sphere, in the monomials ``u`` and ``u u'``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["GramSpace"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]


@dataclass(frozen=True)
class GramSpace:
    r"""Index arithmetic for the vector :math:`v(u) = (u, w)`, w the entries of :math:`uu'` on and above the diagonal.

    Off-diagonal entries are weighted by :math:`\sqrt2`, so that :math:`\|w\| = \|u\|^2` and :math:`w(u)'w(x) = (u'x)^2`. On the
    sphere :math:`1 = e'w` with e the coordinates of the identity: lower monomials than these are not needed, and a
    polynomial of degree four is :math:`v'Mv` for many symmetric M.

    Args:
        rank: Number r of variables.
    """

    rank: int

    @property
    def num_products(self) -> int:
        """Number D = r (r + 1) / 2 of entries of w."""
        return self.rank * (self.rank + 1) // 2

    @cached_property
    def pairs(self) -> tuple[IntArray, IntArray]:
        """Row and column of each entry of w."""
        return np.triu_indices(self.rank)

    @cached_property
    def weights(self) -> FloatArray:  # (D,)
        """One on the diagonal, the square root of two off it."""
        first, second = self.pairs
        return np.where(first == second, 1.0, math.sqrt(2.0))

    @cached_property
    def identity(self) -> FloatArray:  # (D,)
        """``e``, with ``e'w = |u|^2`` exactly."""
        first, second = self.pairs
        return np.where(first == second, 1.0, 0.0)

    def products(self, rows: FloatArray) -> FloatArray:  # (n, r) -> (n, D)
        """``w`` of each row."""
        first, second = self.pairs
        result: FloatArray = rows[:, first] * rows[:, second] * self.weights
        return result

    def flat(self, matrix: FloatArray) -> FloatArray:  # (r, r) -> (D,)
        """Coordinates a with ``a'w = u'Au`` of a symmetric A."""
        result: FloatArray = matrix[self.pairs] * self.weights
        return result

    def square(self, coordinates: FloatArray) -> FloatArray:  # (D,) -> (r, r)
        """The symmetric matrix with these coordinates: inverse, and transpose, of :meth:`flat`."""
        matrix = np.zeros((self.rank, self.rank))
        matrix[self.pairs] = coordinates / self.weights
        matrix.T[self.pairs] = matrix[self.pairs]
        return matrix

    @cached_property
    def _even(self) -> _Classes:
        first, second = self.pairs
        size = self.num_products
        factors = np.stack([a.ravel() for a in (*_rows_of(first, second, size), *_columns_of(first, second, size))])
        return _Classes.of(factors, np.outer(self.weights, self.weights).ravel())

    @cached_property
    def _odd(self) -> _Classes:
        first, second = self.pairs
        variable = np.repeat(np.arange(self.rank), self.num_products)
        factors = np.stack([variable, np.tile(first, self.rank), np.tile(second, self.rank)])
        return _Classes.of(factors, np.tile(self.weights, self.rank))

    def even_values(self, matrix: FloatArray) -> FloatArray:  # (D, D) -> (D, D)
        """The part of a matrix that ``w'Nw`` depends on: its average over equal monomials. The rest is zero for every u."""
        return self._even.average(matrix)

    def odd_values(self, matrix: FloatArray) -> FloatArray:  # (r, D) -> (r, D)
        """The part of a matrix that ``u'Nw`` depends on."""
        return self._odd.average(matrix)


def _rows_of(first: IntArray, second: IntArray, size: int) -> tuple[IntArray, IntArray]:
    return np.repeat(first, size), np.repeat(second, size)


def _columns_of(first: IntArray, second: IntArray, size: int) -> tuple[IntArray, IntArray]:
    return np.tile(first, size), np.tile(second, size)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Classes:
    """Entries of a matrix that stand before the same monomial.

    Args:
        labels: Of the class of each entry.
        weights: Factor of each entry.
        totals: Sum of the squared factors of each class.
    """

    labels: IntArray
    weights: FloatArray
    totals: FloatArray

    @classmethod
    def of(cls, factors: IntArray, weights: FloatArray) -> _Classes:
        """From the variables each entry multiplies, in any order."""
        degree, _ = factors.shape
        base = int(factors.max(initial=0)) + 1
        codes = np.sort(factors, axis=0).T @ (base ** np.arange(degree))
        labels: IntArray = np.unique(codes, return_inverse=True)[1].astype(np.intp).ravel()
        return cls(labels=labels, weights=weights, totals=np.bincount(labels, weights**2).astype(np.float64))

    def average(self, matrix: FloatArray) -> FloatArray:
        """Orthogonal projection on the matrices that are constant, up to the factors, on every class."""
        means = np.bincount(self.labels, self.weights * matrix.ravel(), minlength=len(self.totals)) / self.totals
        result: FloatArray = (means[self.labels] * self.weights).reshape(matrix.shape)
        return result
