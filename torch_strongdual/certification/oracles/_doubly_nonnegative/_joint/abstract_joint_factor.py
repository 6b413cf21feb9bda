"""What low-rank augmented Lagrangians for the relaxed training problem have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._doubly_nonnegative._joint.abstract_joint_ascent import (
    AbstractJointAscent,
    JointLeaf,
    RelaxedTraining,
)
from torch_strongdual.certification.oracles._doubly_nonnegative.factor_penalty import FactorPenalty, FactorValue
from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift
from torch_strongdual.certification.oracles._doubly_nonnegative.limited_memory import LimitedMemory
from torch_strongdual.certification.oracles._doubly_nonnegative.low_rank_ascent import CUTS, first_factor, full_width
from torch_strongdual.certification.oracles._doubly_nonnegative.product_multipliers import ProductMultipliers

__all__ = ["AbstractJointFactor", "Evaluated", "FactorPart"]

FloatArray = NDArray[np.float64]

_STEPS = 25  # of the minimiser, between two updates of the multipliers
_FIRST_WEIGHT, _LAST_WEIGHT, _GROWTH = 5.0, 40.0, 1.3  # of the penalty, for moments of size one
_WIDENED = 0.1  # of new columns, in units of the old ones


@dataclass(slots=True, kw_only=True, eq=False)
class FactorPart:
    """Moments of the branches of one sign in one part of the sphere.

    Args:
        sign: Of the output weights.
        lift: Which part of the sphere.
        factor: Rows V of u, of any norm t, then W of open entries, shape (r + n, k).
        multipliers: Of the constraints.
    """

    sign: float
    lift: Lift
    factor: FloatArray
    multipliers: ProductMultipliers

    @classmethod
    def of(cls, lift: Lift, sign: float, path_decay: float, width: int | None = None) -> FactorPart:
        """A random start of about the right size, of the full width if none is given."""
        factor = 0.5 / np.sqrt(path_decay) * first_factor(lift, 0 if sign > 0.0 else 1, width)
        return cls(sign=sign, lift=lift, factor=factor, multipliers=ProductMultipliers.zero(lift))

    @property
    def linear(self) -> FloatArray:
        """V."""
        return self.factor[: self.lift.rank]

    @property
    def size(self) -> float:
        """t: the root of the size of the moments."""
        return float(np.linalg.norm(self.linear))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluated:
    """The augmented Lagrangian at a point.

    Args:
        value: Loss, penalty of the training problem, and those of the constraints.
        gradients: In the bias, then in the factors, flat each.
        dual_point: The negative gradient of the loss in the outputs.
        values: The penalties of the parts.
        products: The rows of p of the parts; see :class:`FactorPenalty`.
    """

    value: float
    gradients: Sequence[FloatArray]
    dual_point: FloatArray
    values: Sequence[FactorValue]
    products: Sequence[FloatArray]


class AbstractJointFactor(AbstractJointAscent):
    """Augmented Lagrangian in low-rank factors of the moments, those of all parts at once; see :class:`FactorPenalty`.

    The dual point is the residual of the outputs.

    Args:
        training: The problem.
        parts: Where to start.
        has_cones: See :class:`FactorPenalty`.
    """

    def __init__(self, training: RelaxedTraining, parts: Sequence[FactorPart], *, has_cones: bool) -> None:
        self._training, self._parts, self._has_cones = training, list(parts), has_cones
        self._bias, self._weight = np.zeros(training.num_outputs), _FIRST_WEIGHT
        self.iterations = 0
        self._start()

    def _start(self) -> None:
        """Look at the present parts anew."""
        weight = self._penalty_weight()
        self._penalties = [
            FactorPenalty(part.lift, part.multipliers, weight, has_cones=self._has_cones) for part in self._parts
        ]
        self._minimiser = LimitedMemory(len(self._bias) + sum(part.factor.size for part in self._parts))
        self._look()

    @abstractmethod
    def _evaluated(self, bias: FloatArray, linears: list[FloatArray], products: list[FloatArray]) -> Evaluated:
        """Everything at a bias (c,) and factors: V and the rows of p of each part.

        Without a free bias, both it and its gradient count as zero.
        """

    @property
    def dual_point(self) -> FloatArray:
        """See :meth:`AbstractJointAscent.dual_point`."""
        return self._at.dual_point

    @property
    def weights(self) -> FloatArray:
        """See :meth:`AbstractJointAscent.weights`."""
        return self._training.weights(self._at.dual_point)

    @property
    def leaves(self) -> Sequence[JointLeaf]:
        """See :meth:`AbstractJointAscent.leaves`: to be improved from the factors."""
        found = zip(self._parts, self._at.values, strict=True)
        return [JointLeaf(sign=p.sign, signs=p.lift.signs, multipliers=v.multipliers, factor=p.factor) for p, v in found]

    @property
    def num_parts(self) -> int:
        """See :meth:`AbstractJointAscent.num_parts`."""
        return len(self._parts)

    @property
    def part_bytes(self) -> int:
        """See :meth:`AbstractJointAscent.part_bytes`: factors, those the minimiser remembers, and multipliers."""
        return 40 * 8 * self._parts[0].factor.size

    def advance(self, is_over: Callable[[], bool]) -> float:
        """See :meth:`AbstractJointAscent.advance`."""
        before = self._at.dual_point
        if self.iterations:
            self._update()
        point = np.concatenate([self._bias, *(part.factor.ravel() for part in self._parts)])
        point = self._minimiser.minimise(self._lagrangian, point, num_steps=_STEPS, is_over=is_over)
        self._bias = point[: len(self._bias)].copy()
        for part, factor in zip(self._parts, self._factors(point), strict=True):
            part.factor = factor.copy()
        self._look()
        length = float(np.linalg.norm(self._at.dual_point))
        moved = float(np.linalg.norm(self._at.dual_point - before))
        return moved / length if length > 0.0 else 0.0

    def widen(self) -> bool:
        """Give narrow factors their full width, from where they are; ``False`` if they have it."""
        missing = full_width(self._parts[0].lift) - self._parts[0].factor.shape[1]
        if missing <= 0:
            return False
        for seed, (part, value) in enumerate(zip(self._parts, self._at.values, strict=True)):
            shape = len(part.factor), missing
            size = _WIDENED * np.linalg.norm(part.factor) / np.sqrt(part.factor.size)
            columns = size * np.random.default_rng(seed).standard_normal(shape)
            part.factor, part.multipliers = np.concatenate([part.factor, columns], axis=1), value.multipliers
        self._start()
        return True

    def split(self, number: int) -> None:
        """See :meth:`AbstractJointAscent.split`."""
        choices = sorted(((*self._widest_sample(k), k) for k in range(len(self._parts))), reverse=True)
        chosen = {k: sample for score, sample, k in choices[:number] if score > 0.0}
        parts = []
        for k, (part, value) in enumerate(zip(self._parts, self._at.values, strict=True)):
            if k not in chosen:
                parts.append(part)
                continue
            for sign in (1, -1):
                lift = part.lift.with_sign(chosen[k], sign)
                half = 0.5**0.5 * part.factor
                parts.append(FactorPart(sign=part.sign, lift=lift, factor=half, multipliers=value.multipliers))
        self._parts = parts
        self._start()

    def _widest_sample(self, k: int) -> tuple[float, int]:
        """The undecided sample that is on as much as off, weighted by its dual; and by how much."""
        part, number = self._parts[k], len(self._at.dual_point)
        means = part.size * self._at.products[k][:, 0]
        scores = np.abs(self.weights) * np.minimum(means[:number], means[number:])
        scores[part.lift.signs != 0] = -1.0
        sample = int(scores.argmax())
        return float(scores[sample]), sample

    def _penalty_weight(self) -> float:
        """Violations grow with the size of the moments."""
        return self._weight / max(sum(part.size**2 for part in self._parts), 1e-3 / self._training.path_decay)

    def _update(self) -> None:
        """New multipliers, products and weight."""
        self._weight = max(self._weight, min(_GROWTH * self._weight, _LAST_WEIGHT))
        weight, max_cuts = self._penalty_weight(), CUTS * len(self._at.dual_point)
        for k, part in enumerate(self._parts):
            found = self._penalties[k].updated(self._at.values[k], self._at.products[k], weight=weight, max_cuts=max_cuts)
            self._penalties[k], part.multipliers = found, found.multipliers

    def _factors(self, point: FloatArray) -> list[FloatArray]:
        ends = np.cumsum([part.factor.size for part in self._parts])[:-1]
        pieces = np.split(point[len(self._bias) :], ends)
        return [piece.reshape(part.factor.shape) for piece, part in zip(pieces, self._parts, strict=True)]

    def _look(self) -> None:
        """Evaluate everything at the present factors."""
        self._at = self._at_factors(self._bias, [part.factor for part in self._parts])

    def _lagrangian(self, point: FloatArray) -> tuple[float, FloatArray]:
        self.iterations += 1
        self._at = self._at_factors(point[: len(self._bias)], self._factors(point))
        return self._at.value, np.concatenate(self._at.gradients)

    def _at_factors(self, bias: FloatArray, factors: list[FloatArray]) -> Evaluated:
        linears = [factor[: part.lift.rank] for factor, part in zip(factors, self._parts, strict=True)]
        found = zip(self._penalties, linears, factors, strict=True)
        products = [penalty.factor(linear, factor[len(linear) :]) for penalty, linear, factor in found]
        return self._evaluated(bias, linears, products)
