"""Low-rank augmented Lagrangian for the doubly nonnegative relaxation: finds multipliers, proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._doubly_nonnegative.abstract_ascent import AbstractAscent, AbstractAscentPoint
from torch_strongdual.certification.oracles._doubly_nonnegative.factor_penalty import FactorPenalty, FactorValue
from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift
from torch_strongdual.certification.oracles._doubly_nonnegative.limited_memory import LimitedMemory
from torch_strongdual.certification.oracles._doubly_nonnegative.product_multipliers import ProductMultipliers
from torch_strongdual.certification.oracles._doubly_nonnegative.safe_bound import safe_upper_of_products

__all__ = ["CUTS", "LowRankAscent", "LowRankPoint", "first_factor", "full_width"]

FloatArray = NDArray[np.float64]

_SPARE_RANK = 8  # columns of the factor beyond the rank of the data
_STEPS = 50  # of the minimiser, between two updates of the multipliers
_FIRST_WEIGHT, _LAST_WEIGHT, _GROWTH = 5.0, 40.0, 1.3  # of the penalty, in units in which the weights have norm one
CUTS = 5  # new products a sample and update, at most
_NEAR, _FINALLY_NEAR = 0.1, 0.003  # distance from its own estimate of the relaxation's value, of that to the goal
_FEWEST_CHECKS = 4  # without cones: before there are multipliers of products, the estimate agrees with any bound
_PATIENCE, _FINAL_PATIENCE = 8, 30  # rounds without a better bound


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LowRankPoint(AbstractAscentPoint):
    """Where an ascent stands.

    Args:
        factor: Rows V of u, then W of open entries, shape (r + n, k).
        multipliers: Of the constraints.
        weight: Of the penalty.
    """

    factor: FloatArray
    multipliers: ProductMultipliers
    weight: float

    def ascent(self, lift: Lift) -> LowRankAscent:
        """See :meth:`AbstractAscentPoint.ascent`."""
        return LowRankAscent(lift, start=self)


class LowRankAscent(AbstractAscent):
    r"""Augmented Lagrangian in a factor of the moments, :math:`Y = F F'` with few columns; see :class:`FactorPenalty`.

    Moments near a solution have a rank not much above that of the data. An iteration costs :math:`O(n r k)`, k columns,
    instead of the :math:`O(n^3)` of an eigendecomposition, and of the :math:`2 n^2` products only those that are violated get a
    multiplier, some ten a sample. The factor's problem is not convex, which matters little: any multipliers give a bound.

    Args:
        lift: With weights and linear part of norm about one, for which the weight of the penalty is tuned.
        start: Where to begin.
    """

    def __init__(self, lift: Lift, *, start: LowRankPoint | None = None) -> None:
        self._lift = lift
        if start is None:
            start = LowRankPoint(factor=first_factor(lift), multipliers=ProductMultipliers.zero(lift), weight=_FIRST_WEIGHT)
        self._penalty = FactorPenalty(lift, start.multipliers, start.weight, has_cones=lift.bilinear is None)
        self._factor = start.factor
        self._minimiser = LimitedMemory(self._factor.size)
        self._evaluated = self._parts(self._factor)
        self._rounds, self._best, self._stalls, self._checks = 1 + lift.num_rows // 300, np.inf, 0, 0
        self.iterations = 0

    def advance(self, is_over: Callable[[], bool]) -> bool:
        """A few updates of the multipliers, the more the dearer a bound is; see :meth:`AbstractAscent.advance`."""
        before = self.iterations
        for _ in range(self._rounds):
            if is_over():
                break
            if self.iterations:
                self._update()
            self._minimise(is_over)
        return self.iterations > before and self._evaluated[1].multipliers.is_finite

    def upper(self) -> float:
        """See :meth:`AbstractAscent.upper`."""
        return safe_upper_of_products(self._lift, self._evaluated[1].multipliers)

    @property
    def means(self) -> FloatArray:
        """See :meth:`AbstractAscent.means`."""
        products, _ = self._evaluated
        linear = self._factor[: self._lift.rank]
        if self._lift.bilinear is None:
            return np.concatenate([[1.0], linear[:, 0], products[:, 0]])
        main = np.linalg.svd(linear[: self._lift.rank - self._lift.num_outputs], full_matrices=False)[0][:, 0]
        return np.concatenate([[1.0], main, np.zeros(self._lift.num_outputs), np.linalg.norm(products, axis=1)])

    @property
    def point(self) -> LowRankPoint:
        """See :meth:`AbstractAscent.point`."""
        return LowRankPoint(factor=self._factor, multipliers=self._evaluated[1].multipliers, weight=self._penalty.weight)

    def is_settled(self, upper: float, goal: float, *, is_final: bool) -> bool:
        """See :meth:`AbstractAscent.is_settled`: near what the factor itself says that the relaxation's value is."""
        self._stalls = 0 if upper < self._best else self._stalls + 1
        self._best = min(self._best, upper)
        self._checks += 1
        if self._lift.bilinear is not None and self._checks < _FEWEST_CHECKS:
            return False
        near, patience = (_FINALLY_NEAR, _FINAL_PATIENCE) if is_final else (_NEAR, _PATIENCE)
        return self._stalls > patience or abs(upper - self._value()) <= near * (upper - goal)

    def _value(self) -> float:
        """The objective at the factor."""
        return self._objective(self._factor[: self._lift.rank], self._evaluated[0])

    def _objective(self, linear: FloatArray, products: FloatArray) -> float:
        lift = self._lift
        if lift.bilinear is not None:
            return float(np.vdot(lift.bilinear, products[: len(lift.bilinear)] @ linear[-lift.num_outputs :].T))
        return float(lift.weights @ products[: lift.num_rows, 0] + lift.linear @ linear[:, 0])

    def _update(self) -> None:
        products, value = self._evaluated
        weight = max(self._penalty.weight, min(_GROWTH * self._penalty.weight, _LAST_WEIGHT))
        self._penalty = self._penalty.updated(value, products, weight=weight, max_cuts=CUTS * self._lift.num_rows)

    def _minimise(self, is_over: Callable[[], bool]) -> None:
        shape, rank = self._factor.shape, self._lift.rank

        def function(point: FloatArray) -> tuple[float, FloatArray]:
            self.iterations += 1
            return self._lagrangian(point.reshape(shape))

        found = self._minimiser.minimise(function, self._factor.ravel(), num_steps=_STEPS, is_over=is_over).reshape(shape)
        self._factor = found.copy()
        self._factor[:rank] /= np.linalg.norm(found[:rank])
        self._evaluated = self._parts(self._factor)

    def _parts(self, factor: FloatArray) -> tuple[FloatArray, FactorValue]:
        linear, opened = factor[: self._lift.rank], factor[self._lift.rank :]
        products = self._penalty.factor(linear, opened)
        return products, self._penalty.evaluate(1.0, linear, products)

    def _lagrangian(self, factor: FloatArray) -> tuple[float, FloatArray]:
        """What is minimised, as a function of V of any norm: it is divided by its norm."""
        lift = self._lift
        length = float(np.linalg.norm(factor[: lift.rank]))
        linear = factor[: lift.rank] / length
        products = self._penalty.factor(linear, factor[lift.rank :])
        found = self._penalty.evaluate(1.0, linear, products)
        value = found.value - self._objective(linear, products)
        if lift.bilinear is None:
            found.products[: lift.num_rows, 0] -= lift.weights
        else:
            found.products[: len(lift.bilinear)] -= lift.bilinear @ linear[-lift.num_outputs :]
        of_linear, of_opened = self._penalty.pulled_back(found.products)
        of_linear += found.linear
        if lift.bilinear is None:
            of_linear[:, 0] -= lift.linear
        else:
            of_linear[-lift.num_outputs :] -= lift.bilinear.T @ products[: len(lift.bilinear)]
        of_linear -= float(np.vdot(linear, of_linear)) * linear
        return value, np.concatenate([of_linear / length, of_opened]).ravel()


def full_width(lift: Lift) -> int:
    """Columns of a factor that can come close to moments that solve the relaxation."""
    return lift.rank + _SPARE_RANK


def first_factor(lift: Lift, seed: int = 0, width: int | None = None) -> FloatArray:
    """V random of norm one, W the absolute values of X V up to scale: of the right size, not special in any way."""
    linear = np.random.default_rng(seed).standard_normal((lift.rank, width or full_width(lift)))
    linear /= np.linalg.norm(linear)
    return np.concatenate([linear, np.abs(lift.rows @ linear)])
