"""Operator splitting for the relaxed training problem: a dual point that suits the doubly nonnegative relaxation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.oracles._doubly_nonnegative._joint.abstract_joint_ascent import (
    AbstractJointAscent,
    JointLeaf,
    RelaxedTraining,
)
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.joint_low_rank import JointLowRank
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.moment_halves import moment_halves
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.piecewise_root import piecewise_root
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.relaxed_losses import HuberRelaxedLoss
from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift
from torch_strongdual.certification.oracles._doubly_nonnegative.sets import ProductCone, SemidefiniteFace, cone_heights

__all__ = ["JointSplitting"]

FloatArray = NDArray[np.float64]

_ITERATIONS = 20  # in a round
_PENALTY_OF_SPLITS = 0.5  # of the penalty before: once split, bounds suffer more from multipliers than from moments
_GROWTH = 0.5  # of the penalty with the number of parts: an exponent
_EASING = 0.6  # of the penalty in a round without a split, for better multipliers
_FIRST_PENALTY = 2.0  # after another solver, in units of the size of multipliers over that of moments
_RELAXATION = 1.6


@dataclass(slots=True, kw_only=True, eq=False)
class _Part:
    """Moments of the branches of one sign in one part of the sphere."""

    sign: float
    lift: Lift
    face: SemidefiniteFace
    moments: Tensor
    offsets: Tensor  # prices over the penalty
    face_moments: Tensor
    before: Tensor
    push: Tensor  # what the objective added to the first row last time


class JointSplitting(AbstractJointAscent):
    """ADMM over full matrices of moments.

    Args:
        training: The problem, of one output.

    Raises:
        ValueError: If its loss is another one than Huber's of one output.
    """

    def __init__(self, training: RelaxedTraining) -> None:
        if not isinstance(training.loss, HuberRelaxedLoss) or training.loss.targets.ndim != 1:
            raise ValueError("JointSplitting is for one output and losses of Huber's kind.")
        lift = Lift.of(training.rows, np.zeros(len(training.rows)), np.zeros(training.rows.shape[1]))
        self._active, self._inactive, self._first = lift.active, lift.inactive, 1 + lift.rank
        self._cone, self._training = ProductCone(lift, is_normalised=False), training
        self._norms = torch.from_numpy(training.norms)
        self._targets = torch.from_numpy(training.loss.targets)
        self._slope_bound = training.loss.slope_bound
        zero = torch.zeros(lift.length, lift.length, dtype=torch.float64)
        self._parts = [self._part(sign, lift, zero, zero, zero[0]) for sign in (1.0, -1.0)]
        self._bias, self._penalty, self._base, self._is_fresh = 0.0, 1.0, 1.0, False
        self._dual_point = self._targets
        self.iterations = 0

    @property
    def dual_point(self) -> FloatArray:
        """See :meth:`AbstractJointAscent.dual_point`."""
        result: FloatArray = self._dual_point.numpy()
        return result

    @property
    def num_parts(self) -> int:
        """See :meth:`AbstractJointAscent.num_parts`."""
        return len(self._parts)

    @property
    def part_bytes(self) -> int:
        """See :meth:`AbstractJointAscent.part_bytes`."""
        return 72 * len(self._parts[0].moments) ** 2

    @property
    def weights(self) -> FloatArray:
        """See :meth:`AbstractJointAscent.weights`."""
        return self._training.weights(self.dual_point)

    @property
    def leaves(self) -> list[JointLeaf]:
        """See :meth:`AbstractJointAscent.leaves`."""
        leaves = []
        for part in self._parts:
            multipliers = -self._penalty * part.offsets
            multipliers[0] -= self._penalty * part.push
            multipliers[1:, 0] -= self._penalty * part.push[1:]
            found = multipliers.numpy()
            leaves.append(JointLeaf(sign=part.sign, signs=part.lift.signs, multipliers=found, moments=part.moments))
        return leaves

    @classmethod
    def after(cls, other: JointLowRank, training: RelaxedTraining) -> JointSplitting:
        """Go on where a low-rank solver of the same problem stopped, before any split."""
        result = cls(training)
        result._dual_point, result._bias = torch.from_numpy(other.dual_point), other.bias
        starts = other.parts
        sizes = [np.linalg.norm(start.multipliers) / max(float(np.linalg.norm(start.moments)), 1e-300) for start in starts]
        result._penalty = _FIRST_PENALTY * min(max(float(np.mean(sizes)), 1e-3), 1e3)
        for part, start in zip(result._parts, starts, strict=True):
            part.moments = part.face_moments = part.before = torch.from_numpy(start.moments)
            part.push = result._push(part.sign, result._dual_point)
            part.offsets = torch.from_numpy(start.multipliers) / -result._penalty
            part.offsets[0] -= part.push
            part.offsets[1:, 0] -= part.push[1:]
        return result

    def advance(self, is_over: Callable[[], bool]) -> float:
        """See :meth:`AbstractJointAscent.advance`."""
        before = self._dual_point
        if self.iterations and self.num_parts == 2:
            self.balance()
        elif self.num_parts > 2 and not self._is_fresh:
            self.scale_penalty(max(_EASING, self._base / self._penalty))
        self._is_fresh = False
        try:
            for _ in range(_ITERATIONS):
                if is_over():
                    break
                self.step()
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return math.nan
        length = float(torch.linalg.norm(self._dual_point))
        return float(torch.linalg.norm(self._dual_point - before)) / length if length > 0.0 else 0.0

    def step(self) -> None:
        """One iteration; raises ``torch.linalg.LinAlgError`` where an eigendecomposition fails."""
        targets = []
        for part in self._parts:
            part.face_moments = part.face.project(part.moments - part.offsets)
            targets.append(torch.lerp(part.moments, part.face_moments, _RELAXATION).add_(part.offsets))
            targets[-1][0, 0] -= self._training.path_decay / self._penalty
        self._dual_point = self._coupled_point(targets)
        for part, target in zip(self._parts, targets, strict=True):
            part.push = self._push(part.sign, self._dual_point)
            _add_to_border(target, part.push[1:])
            part.before, part.moments = part.moments, self._cone.project(target)
            part.offsets = target.sub_(part.moments)
            part.offsets[0, 0] -= part.push[0]
            _add_to_border(part.offsets, -part.push[1:])
        self.iterations += 1
        if self._training.has_bias:  # a descent step on the bias: its optimality is the balance of the dual point
            self._bias += float(self._dual_point.mean())

    def balance(self) -> None:
        """Change the penalty where one of the two relative residuals is much larger than the other."""
        primal = sum(float(torch.linalg.norm(part.face_moments - part.moments)) for part in self._parts)
        primal *= sum(float(torch.linalg.norm(part.offsets)) for part in self._parts)
        dual = sum(float(torch.linalg.norm(part.moments - part.before)) for part in self._parts)
        dual *= sum(float(torch.linalg.norm(part.moments)) for part in self._parts)
        if primal > 0.0 and dual > 0.0 and not 0.25 <= (ratio := primal / dual) <= 4.0:
            self.scale_penalty(min(max(ratio**0.5, 0.3), 3.0))

    def scale_penalty(self, factor: float) -> None:
        """Multiply the penalty: smaller ones keep the multipliers closer to what proves bounds."""
        self._penalty *= factor
        for part in self._parts:
            part.offsets = part.offsets / factor
            part.push = part.push / factor

    def split(self, number: int) -> None:
        """See :meth:`AbstractJointAscent.split`."""
        if self.num_parts == 2:
            self._base = _PENALTY_OF_SPLITS * self._penalty
        choices = sorted(((*self._widest_sample(part), k) for k, part in enumerate(self._parts)), reverse=True)
        chosen = {k: sample for score, sample, k in choices[:number] if score > 0.0}
        parts = []
        for k, part in enumerate(self._parts):
            if k not in chosen:
                parts.append(part)
                continue
            halves = moment_halves(part.moments, self._active.start + chosen[k], self._inactive.start + chosen[k])
            for sign, moments in zip((1, -1), halves, strict=True):
                lift = part.lift.with_sign(chosen[k], sign)
                parts.append(self._part(part.sign, lift, moments, part.offsets, part.push))
        self._parts, self._is_fresh = parts, True
        # Moments of more parts are smaller.
        self.scale_penalty(self._base * (len(parts) / 2.0) ** _GROWTH / self._penalty)

    def _part(self, sign: float, lift: Lift, moments: Tensor, offsets: Tensor, push: Tensor) -> _Part:
        face = SemidefiniteFace(lift, device=torch.device("cpu"))
        return _Part(
            sign=sign, lift=lift, face=face, moments=moments, offsets=offsets, face_moments=moments, before=moments, push=push
        )

    def _widest_sample(self, part: _Part) -> tuple[float, int]:
        """The undecided sample that is on as much as off, weighted by its dual; and by how much."""
        moments = part.moments[0]
        scores = (self._dual_point * self._norms).abs() * torch.minimum(moments[self._active], moments[self._inactive])
        scores[torch.from_numpy(part.lift.signs != 0)] = -1.0
        sample = int(scores.argmax())
        return float(scores[sample]), sample

    def _push(self, sign: float, dual_point: Tensor) -> Tensor:
        """What the objective adds to the first row of the targets."""
        pull = sign * self._pull(dual_point)
        corner = pull.new_tensor([-self._training.path_decay / self._penalty])
        return torch.cat([corner, pull.new_zeros(self._first - 1), pull, -self._training.slope * pull])

    def _pull(self, dual_point: Tensor) -> Tensor:
        """What a dual point adds to the targets of ``Y_{1 z_i}``."""
        return dual_point * self._norms / (2.0 * self._penalty)

    def _coupled_point(self, targets: list[Tensor]) -> Tensor:
        """The dual point at which the loss and the projections agree: a root for each sample."""
        signs = self._targets.new_tensor([part.sign for part in self._parts])[:, None]
        groups = [(self._active, signs)] + ([(self._inactive, -self._training.slope * signs)] if self._training.slope else [])
        borders = []
        for where, weights in groups:
            heights = torch.stack([target[0, where] for target in targets])
            norms = torch.stack([torch.linalg.norm(target[1 : self._first, where], dim=0) for target in targets])
            borders.append((weights.expand_as(heights), heights, norms))
        weights, heights, norms = (torch.cat(part) for part in zip(*borders, strict=True))
        steepness = weights * self._norms / (2.0 * self._penalty)

        def excess(dual_point: Tensor) -> Tensor:
            moved = (weights * cone_heights(heights + steepness * dual_point, norms)).sum(0)
            return dual_point - self._targets + self._bias + self._norms * moved

        zero = torch.zeros_like(self._targets)
        opposite = -excess(zero)  # the excess grows at least as fast as the dual point
        low, high = torch.minimum(opposite, zero), torch.maximum(opposite, zero)
        bends = torch.cat([(-norms - heights) / steepness, (norms - heights) / steepness])
        change = 0.5 * self._norms * weights * steepness  # of the slope at a bend
        first = 1.0 + 2.0 * (change * (steepness < 0.0)).sum(0)
        growth = (change * steepness.sign()).repeat(2, 1)
        root = piecewise_root(low, excess(low), first, bends.clamp(low, high), growth)
        return root.clamp(-self._slope_bound, self._slope_bound)


def _add_to_border(matrix: Tensor, border: Tensor) -> None:
    """Add to the first row and the first column, but not where they meet."""
    matrix[0, 1:] += border
    matrix[1:, 0] += border
