"""The lifted variables of the doubly nonnegative relaxation, with some signs decided."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles.sphere_problem import SphereProblem

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
        bilinear: :math:`\Lambda` (m, c): the last c coordinates of u are those of v, where the rows of the first m samples are
            zero, and :math:`z'\Lambda v` is added to what is maximised. As :math:`\|u\| \|v\| \le 1/2`, that is half of
            :math:`\max \|\Lambda'z\|` over the other coordinates. Further rows are directions of v, whose signs may be decided
            like those of samples.
    """

    rows: FloatArray
    weights: FloatArray
    linear: FloatArray
    signs: SignArray
    bilinear: FloatArray | None = None

    @classmethod
    def of(cls, rows: FloatArray, weights: FloatArray, linear: FloatArray) -> Lift:
        """No sign decided."""
        return cls(rows=rows, weights=weights, linear=linear, signs=np.zeros(len(rows), dtype=np.int8))

    @classmethod
    def of_outputs(cls, rows: FloatArray, weights: FloatArray, directions: FloatArray) -> Lift:
        r"""Half of :math:`\|\Lambda'z\\|` is maximised: rows (m, r), weights (m, c), directions (k, c), no sign decided."""
        (number, rank), (more, outputs) = rows.shape, directions.shape
        padded = np.zeros((number + more, rank + outputs))
        padded[:number, :rank], padded[number:, rank:] = rows, directions
        signs, zeros = np.zeros(number + more, dtype=np.int8), np.zeros(number + more)
        return cls(rows=padded, weights=zeros, linear=np.zeros(rank + outputs), signs=signs, bilinear=weights)

    @property
    def num_outputs(self) -> int:
        """Length of v: 0 without a bilinear part."""
        return 0 if self.bilinear is None else int(self.bilinear.shape[1])

    @property
    def problem(self) -> SphereProblem:
        """What is maximised, before any sign is decided."""
        if self.bilinear is None:
            duals, linear = self.weights[:, None], self.linear[:, None]
            return SphereProblem(rows=self.rows, duals=duals, linear=linear, one_sided=True)
        rows = self.rows[: len(self.bilinear), : self.rank - self.num_outputs]
        return SphereProblem(rows=rows, duals=0.5 * self.bilinear, linear=np.zeros((rows.shape[1], self.num_outputs)))

    def direction(self, means: FloatArray) -> FloatArray:
        """The part of a lifted vector that :attr:`problem` knows."""
        found: FloatArray = means[1 : 1 + self.rank - self.num_outputs]
        return found

    def sample_to_split(self, means: FloatArray) -> int:
        """The undecided sample that is on as much as off, weighted by its duals; -1 if there is none."""
        is_open = self.signs == 0
        if not is_open.any():
            return -1
        scores = self._sizes * np.minimum(means[self.active], means[self.inactive])
        return int(np.argmax(np.where(is_open, scores, -np.inf)))

    @property
    def _sizes(self) -> FloatArray:
        """How much is at stake in each row: for a direction, all that samples have along it; (n,)."""
        if self.bilinear is None:
            return np.abs(self.weights)
        along = self.bilinear @ self.rows[len(self.bilinear) :, self.rank - self.num_outputs :].T
        return np.concatenate([np.linalg.norm(self.bilinear, axis=1), np.linalg.norm(along, axis=0)])

    def with_sign(self, sample: int, sign: int) -> Lift:
        """The part of the sphere where ``sample`` has this sign."""
        signs = self.signs.copy()
        signs[sample] = sign
        return dataclasses.replace(self, signs=signs)

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
        """Symmetric C with ``e'Ce = G'u + lam'z + z'Lam v`` (its halves are exact)."""
        result = np.zeros((self.length, self.length))
        result[0, 1 : 1 + self.rank] = 0.5 * self.linear
        result[0, self.active] = 0.5 * self.weights
        if self.bilinear is not None:
            samples = slice(self.active.start, self.active.start + len(self.bilinear))
            result[1 + self.rank - self.num_outputs : 1 + self.rank, samples] = 0.5 * self.bilinear.T
        return result + result.T
