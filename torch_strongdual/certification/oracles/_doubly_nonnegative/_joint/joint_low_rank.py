"""Low-rank augmented Lagrangian for the relaxed training problem: many samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._doubly_nonnegative._joint.abstract_joint_ascent import (
    AbstractJointAscent,
    JointLeaf,
    JointPart,
    RelaxedTraining,
)
from torch_strongdual.certification.oracles._doubly_nonnegative.factor_penalty import FactorPenalty, FactorValue
from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift
from torch_strongdual.certification.oracles._doubly_nonnegative.limited_memory import LimitedMemory
from torch_strongdual.certification.oracles._doubly_nonnegative.low_rank_ascent import CUTS, first_factor
from torch_strongdual.certification.oracles._doubly_nonnegative.product_multipliers import ProductMultipliers

__all__ = ["JointLowRank"]

FloatArray = NDArray[np.float64]

_STEPS = 25  # of the minimiser, between two updates of the multipliers
_FIRST_WEIGHT, _LAST_WEIGHT, _GROWTH = 5.0, 40.0, 1.3  # of the penalty, for moments of size one


@dataclass(slots=True, kw_only=True, eq=False)
class _Part:
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

    @property
    def linear(self) -> FloatArray:
        return self.factor[: self.lift.rank]

    @property
    def size(self) -> float:
        """t: the root of the size of the moments."""
        return float(np.linalg.norm(self.linear))


class JointLowRank(AbstractJointAscent):
    """Augmented Lagrangian in low-rank factors of the moments, those of all parts at once; see :class:`FactorPenalty`.

    The size t of a part is the norm of its V. The dual point is the residual of the outputs, clipped for Huber losses.

    Args:
        training: The problem.
    """

    def __init__(self, training: RelaxedTraining) -> None:
        self._training = training
        lift = Lift.of(training.rows, np.zeros(len(training.rows)), np.zeros(training.rows.shape[1]))
        size = 0.5 / np.sqrt(training.path_decay)
        self._parts = [
            _Part(sign=sign, lift=lift, factor=size * first_factor(lift, seed), multipliers=ProductMultipliers.zero(lift))
            for seed, sign in enumerate((1.0, -1.0))
        ]
        self._bias, self._weight = 0.0, _FIRST_WEIGHT
        self.iterations = 0
        self._start()

    def _start(self) -> None:
        """Look at the present parts anew."""
        self._renew_penalties()
        self._minimiser = LimitedMemory(1 + sum(part.factor.size for part in self._parts))
        self._look()

    @property
    def dual_point(self) -> FloatArray:
        """See :meth:`AbstractJointAscent.dual_point`."""
        result: FloatArray = self._dual_point
        return result

    @property
    def weights(self) -> FloatArray:
        """See :meth:`AbstractJointAscent.weights`."""
        return self._training.weights(self._dual_point)

    @property
    def leaves(self) -> Sequence[JointLeaf]:
        """See :meth:`AbstractJointAscent.leaves`."""
        found = zip(self._parts, self._values, strict=True)
        return [JointLeaf(sign=p.sign, signs=p.lift.signs, multipliers=value.multipliers) for p, value in found]

    @property
    def bias(self) -> float:
        """Of the outputs."""
        return self._bias

    @property
    def parts(self) -> tuple[JointPart, ...]:
        """Moments and multipliers in full."""
        found = []
        for part, value, products in zip(self._parts, self._values, self._products, strict=True):
            base = np.zeros((1, products.shape[1]))
            base[0, 0] = part.size
            rows = np.concatenate([base, part.linear, products])
            found.append(JointPart(moments=rows @ rows.T, multipliers=value.multipliers.matrix(part.lift)))
        return tuple(found)

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
        before = self._dual_point
        if self.iterations:
            self._update()
        point = np.concatenate([[self._bias], *(part.factor.ravel() for part in self._parts)])
        point = self._minimiser.minimise(self._lagrangian, point, num_steps=_STEPS, is_over=is_over)
        self._bias = float(point[0])
        for part, factor in zip(self._parts, self._factors(point), strict=True):
            part.factor = factor.copy()
        self._look()
        length = float(np.linalg.norm(self._dual_point))
        moved = float(np.linalg.norm(self._dual_point - before))
        return moved / length if length > 0.0 else 0.0

    def split(self, number: int) -> None:
        """See :meth:`AbstractJointAscent.split`."""
        choices = sorted(((*self._widest_sample(k), k) for k in range(len(self._parts))), reverse=True)
        chosen = {k: sample for score, sample, k in choices[:number] if score > 0.0}
        parts = []
        for k, (part, value) in enumerate(zip(self._parts, self._values, strict=True)):
            if k not in chosen:
                parts.append(part)
                continue
            for sign in (1, -1):
                lift = part.lift.with_sign(chosen[k], sign)
                half = 0.5**0.5 * part.factor
                parts.append(_Part(sign=part.sign, lift=lift, factor=half, multipliers=value.multipliers))
        self._parts = parts
        self._start()

    def _widest_sample(self, k: int) -> tuple[float, int]:
        """The undecided sample that is on as much as off, weighted by its dual; and by how much."""
        part, number = self._parts[k], len(self._dual_point)
        means = part.size * self._products[k][:, 0]
        scores = np.abs(self.weights) * np.minimum(means[:number], means[number:])
        scores[part.lift.signs != 0] = -1.0
        sample = int(scores.argmax())
        return float(scores[sample]), sample

    def _penalty_weight(self) -> float:
        """Violations grow with the size of the moments."""
        return self._weight / max(sum(part.size**2 for part in self._parts), 1e-3 / self._training.path_decay)

    def _renew_penalties(self) -> None:
        weight = self._penalty_weight()
        self._penalties = [FactorPenalty(part.lift, part.multipliers, weight) for part in self._parts]

    def _update(self) -> None:
        """New multipliers, products and weight."""
        self._weight = max(self._weight, min(_GROWTH * self._weight, _LAST_WEIGHT))
        weight, max_cuts = self._penalty_weight(), CUTS * len(self._dual_point)
        for k, part in enumerate(self._parts):
            found = self._penalties[k].updated(self._values[k], self._products[k], weight=weight, max_cuts=max_cuts)
            self._penalties[k], part.multipliers = found, found.multipliers

    def _factors(self, point: FloatArray) -> list[FloatArray]:
        ends = np.cumsum([part.factor.size for part in self._parts])[:-1]
        pieces = np.split(point[1:], ends)
        return [piece.reshape(part.factor.shape) for piece, part in zip(pieces, self._parts, strict=True)]

    def _look(self) -> None:
        """Evaluate everything at the present factors."""
        point = np.concatenate([[self._bias], *(part.factor.ravel() for part in self._parts)])
        self._lagrangian(point)

    def _lagrangian(self, point: FloatArray) -> tuple[float, FloatArray]:
        """Loss, penalty of the training problem, and those of the constraints; its gradient in bias and factors."""
        training, factors = self._training, self._factors(point)
        number = len(training.targets)
        linears = [factor[: part.lift.rank] for factor, part in zip(factors, self._parts, strict=True)]
        sizes = [float(np.linalg.norm(linear)) for linear in linears]
        products = [
            penalty.factor(linear, factor[len(linear) :])
            for penalty, linear, factor in zip(self._penalties, linears, factors, strict=True)
        ]
        features = [p[:number, 0] - training.slope * p[number:, 0] for p in products]
        outputs = np.full(number, point[0] if training.has_bias else 0.0)
        for part, size, feature in zip(self._parts, sizes, features, strict=True):
            outputs += part.sign * size * training.norms * feature
        residual = training.targets - outputs
        dual = np.clip(residual, -training.slope_bound, training.slope_bound)
        value = float(dual @ residual - 0.5 * (dual @ dual))
        pull = dual * training.norms
        values: list[FactorValue] = []
        gradients = [np.array([-float(dual.sum()) if training.has_bias else 0.0])]
        for k, part in enumerate(self._parts):
            found = self._penalties[k].evaluate(sizes[k], linears[k], products[k])
            value += found.value + training.path_decay * sizes[k] ** 2
            found.products[:number, 0] -= part.sign * sizes[k] * pull
            found.products[number:, 0] += training.slope * part.sign * sizes[k] * pull
            of_linear, of_opened = self._penalties[k].pulled_back(found.products)
            of_size = found.size + 2.0 * training.path_decay * sizes[k] - part.sign * float(pull @ features[k])
            of_linear += found.linear + of_size / max(sizes[k], 1e-300) * linears[k]
            gradients += [of_linear.ravel(), of_opened.ravel()]
            values.append(found)
        self.iterations += 1
        self._dual_point, self._values, self._products = dual, values, products
        return value, np.concatenate(gradients)
