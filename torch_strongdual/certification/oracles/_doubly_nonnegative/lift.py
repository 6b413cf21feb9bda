"""The lifted variables of the doubly nonnegative relaxation, with some signs decided."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Lift"]

FloatArray = NDArray[np.float64]
SignArray = NDArray[np.int8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lift:
    r"""Maximise :math:`G'u + \sum_i \lambda_i z_i` over :math:`\|u\| = 1`, :math:`z = (Xu)_+`, some signs of Xu decided.

    The *lifted vector* is :math:`e = (1, u, z, s)` with :math:`s = z - Xu = (-Xu)_+`, of length 1 + r + 2 n. It is
    :math:`e = E g` for the *reduced vector* :math:`g = (1, u, z_F)`, F the samples whose sign is open: a sample known to be on
    has :math:`z_i = x_i'u, s_i = 0`, one known to be off :math:`z_i = 0, s_i = -x_i'u`. E has no rounded entries.

    Args:
        rows: :math:`X` (n, r), of norm one up to rounding.
        weights: :math:`\lambda` (n,).
        linear: :math:`G` (r,).
        signs: 1 where :math:`x_i'u \ge 0` is assumed, -1 where :math:`x_i'u \le 0` is, 0 where nothing is; (n,).
    """

    rows: FloatArray
    weights: FloatArray
    linear: FloatArray
    signs: SignArray

    @classmethod
    def of(cls, rows: FloatArray, weights: FloatArray, linear: FloatArray) -> Lift:
        """No sign decided."""
        return cls(rows=rows, weights=weights, linear=linear, signs=np.zeros(len(rows), dtype=np.int8))

    def with_sign(self, sample: int, sign: int) -> Lift:
        """The part of the sphere where ``sample`` has this sign."""
        signs = self.signs.copy()
        signs[sample] = sign
        return Lift(rows=self.rows, weights=self.weights, linear=self.linear, signs=signs)

    @property
    def num_rows(self) -> int:
        """Number n of samples."""
        return int(self.rows.shape[0])

    @property
    def rank(self) -> int:
        """Length r of u."""
        return int(self.rows.shape[1])

    @property
    def length(self) -> int:
        """Length 1 + r + 2 n of e."""
        return 1 + self.rank + 2 * self.num_rows

    @property
    def active(self) -> slice:
        """Where z is in e."""
        return slice(1 + self.rank, 1 + self.rank + self.num_rows)

    @property
    def inactive(self) -> slice:
        """Where s is in e."""
        return slice(1 + self.rank + self.num_rows, self.length)

    @property
    def expansion(self) -> FloatArray:
        """E, of shape (1 + r + 2 n, 1 + r + |F|)."""
        open_samples = np.flatnonzero(self.signs == 0)
        first = 1 + self.rank
        result = np.zeros((self.length, first + len(open_samples)))
        result[np.arange(first), np.arange(first)] = 1.0
        for block in (self.active, self.inactive):
            result[block.start + open_samples, first + np.arange(len(open_samples))] = 1.0
        result[self.active, 1:first] = np.where(self.signs[:, None] > 0, self.rows, 0.0)
        result[self.inactive, 1:first] = np.where(self.signs[:, None] > 0, 0.0, -self.rows)
        return result

    @property
    def objective(self) -> FloatArray:
        """Symmetric C with ``e'Ce = G'u + lam'z`` (its halves are exact)."""
        result = np.zeros((self.length, self.length))
        result[0, 1 : 1 + self.rank] = 0.5 * self.linear
        result[0, self.active] = 0.5 * self.weights
        return result + result.T
