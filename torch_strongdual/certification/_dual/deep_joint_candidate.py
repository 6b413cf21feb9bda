"""Dual points of deep networks, chosen together with the lines that bound their dual norm."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification._dual.abstract_joint_candidate import AbstractJointCandidate, JointPoint, JointSituation
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles import BoundRequest, DepthRecursion
from torch_strongdual.certification.oracles._depth.dual_objectives import (
    AbstractDualObjective,
    EntropyObjective,
    QuadraticObjective,
)
from torch_strongdual.certification.oracles._depth.joint_slopes import DeepTraining, JointSlopes
from torch_strongdual.certification.oracles.auto_oracle import AutoState
from torch_strongdual.certification.oracles.depth_recursion import DepthRecursionState
from torch_strongdual.certification.oracles.row_space import RowSpace, power_of_two_scale
from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.losses import HuberFamilyLoss, LogisticLoss, SoftmaxLoss

__all__ = ["DeepJointCandidate"]

FloatArray = NDArray[np.float64]

_MAX_ROWS = 1500
_MAX_ACTIVATIONS = 3  # beyond, leaky ones have many functionals
_SETTLED, _CLOSE = 1e-3, 2e-3  # progress, and distance from what can be reached, relative to the value
_PATIENCE = 4
_RTOL = 5e-3
_ATTEMPTS = 2  # splits without a better point
_EASY_RANK = 5  # proofs of cases are quick


class DeepJointCandidate(AbstractJointCandidate):
    """Keeps the iterations of :class:`JointSlopes`, for branches with several activations.

    Args:
        problem: Any; where the method does not apply there is no candidate.
    """

    worthwhile_from = 0.02
    share, total_share = 0.9, 0.95

    def __init__(self, problem: TrainingProblem) -> None:
        self._problem = problem
        self._iterations: JointSlopes | None = None
        self._unit = 1.0
        self._proven_value = -math.inf
        self._point: Tensor | None = None
        self._upper = math.inf
        self._is_unfinished = False  # the proof of the last point
        self._has_settled = False  # the iterations, for the cases there are
        self.is_spent = not self.supports(problem)

    @staticmethod
    def supports(problem: TrainingProblem) -> bool:
        """One output or two classes, a loss of this package, two or more (leaky) ReLUs, not too many samples."""
        loss, spec = problem.loss, problem.spec
        bends = [a for a in spec.activations if not a.is_identity]
        if spec.is_gated or spec.patch_map is not None or spec.hidden_bias_layers or not len(bends) >= 2:
            return False
        if any(a.negative_slope for a in bends) and len(bends) > _MAX_ACTIVATIONS:
            return False
        most_outputs = 2 if isinstance(loss, SoftmaxLoss) else 1
        is_known = isinstance(loss, HuberFamilyLoss | LogisticLoss | SoftmaxLoss)
        return is_known and loss.num_outputs <= most_outputs and loss.num_samples <= _MAX_ROWS

    @property
    def has_begun(self) -> bool:
        """See :meth:`AbstractJointCandidate.has_begun`."""
        return self._iterations is not None

    def next_point(self, deadline: Deadline, situation: JointSituation) -> JointPoint | None:
        """See :meth:`AbstractJointCandidate.next_point`.

        Iterates until the point settles or the time is up, and proves it; then proves more of it, then iterates again. Signs
        of the network's dual point decide which samples are grouped; the oracle's searches there are gone on with, and it
        proves the point.
        """
        chosen = situation.oracle_state if isinstance(situation.oracle_state, AutoState) else None
        if self.is_spent or chosen is None or not isinstance(chosen.oracle, DepthRecursion):
            self.is_spent = True
            return None
        oracle, state = chosen.oracle, chosen.state
        if self._iterations is None:
            self._iterations = self._begun(oracle, state, situation.near)
        is_new = False
        if self._iterations is not None and not self._is_unfinished:
            is_new = self._iterated(self._iterations, state, deadline.fraction(0.9))
        if self._iterations is not None and is_new:
            self._point = self._proposed(self._iterations, oracle, state)
        if self._point is None or (deadline.expired and not is_new):
            self.is_spent = not deadline.expired
            return None
        bound = oracle.bound(state, self._point, BoundRequest(rtol=_RTOL, floor=self._floor(state, is_new), deadline=deadline))
        was_unfinished, self._is_unfinished = self._is_unfinished, deadline.expired
        if not is_new and not bound.upper < self._upper:  # the same point, more cases
            self.is_spent, self._is_unfinished = not was_unfinished, False
            return None
        self._upper = bound.upper
        return JointPoint(candidate=self._point, bound=bound)

    def _begun(self, oracle: DepthRecursion, state: DepthRecursionState, near: Tensor) -> JointSlopes | None:
        given = self._problem
        objective, self._unit = _objective(given)
        if not 0.0 < self._unit < math.inf:
            return None
        duals = near[:, 0].numpy() / self._unit
        asked = _asked(near)
        if asked is None or not (duals.any() and np.isfinite(duals).all() and state.row_space.rank > 0):
            return None
        training = DeepTraining(
            rows=state.row_space.rows,
            objective=objective,
            path_decay=given.dual_norm_limit / state.scale / self._unit / math.sqrt(near.shape[1]),
            has_bias=given.spec.output_bias,
        )
        factor = _factor(asked, duals)
        known = [oracle.known_search(state, sign * asked) for sign in (1.0, -1.0)]
        estimate = max(search.estimate for search in known) / abs(factor)
        feasible = min(1.0, training.path_decay / estimate) if estimate > 0.0 else 1.0  # 0 if not searched yet
        return JointSlopes(training, (known[0], known[1]) if factor > 0.0 else (known[1], known[0]), feasible * duals)

    def _floor(self, state: DepthRecursionState, is_new: bool) -> float:
        """What a new point's lines promise: a point with more cases is worth more than more cases of this one."""
        found = None if self._iterations is None else self._iterations.found
        if found is None or not is_new:
            return 0.0
        norm = found.estimate * self._unit * state.scale * math.sqrt(self._problem.loss.num_outputs)
        return (1.0 + 0.25 * _RTOL) * norm

    def _iterated(self, iterations: JointSlopes, state: DepthRecursionState, deadline: Deadline) -> bool:
        """Whether there is a point that was not proven yet; once a point settled, cases are split first."""
        for _ in range(_ATTEMPTS):
            if self._has_settled and not (state.row_space.rank <= _EASY_RANK and iterations.split()):
                break
            while True:
                self._has_settled = self._settled(iterations, state, deadline)
                if iterations.complete(state.known_starts, deadline) or not self._has_settled:
                    break
            found = iterations.found
            if (found is not None and found.value > self._proven_value) or not self._has_settled:
                break
        return iterations.found is not None and iterations.found.value > self._proven_value

    def _settled(self, iterations: JointSlopes, state: DepthRecursionState, deadline: Deadline) -> bool:
        """Iterate until the point changes no more; whether there was time for that."""
        before, stalls = -math.inf, 0
        while stalls < _PATIENCE:
            if deadline.expired or not iterations.advance(state.known_starts, deadline):
                return False
            value = iterations.value
            stalls = 0 if value > before + _SETTLED * abs(value) else stalls + 1
            before = max(value, before)
            if iterations.hoped - value <= _CLOSE * abs(value):
                break
        return True

    def _proposed(self, iterations: JointSlopes, oracle: DepthRecursion, state: DepthRecursionState) -> Tensor | None:
        """The point in the units of the problem; its lines are handed to the oracle."""
        best = iterations.found
        if best is None:
            return None
        self._proven_value = best.value
        candidate = torch.from_numpy(self._unit * best.duals)[:, None]
        if self._problem.loss.num_outputs == 2:
            candidate = torch.cat([candidate, -candidate], dim=1)
        if self._problem.spec.output_bias:
            candidate = self._problem.loss.balanced(candidate)
        if not bool(torch.isfinite(candidate).all()) or not bool(candidate.any()):
            return None
        if (asked := _asked(candidate)) is not None:
            factor = _factor(asked, best.duals)
            for sign, searches in zip((1.0, -1.0), best.searches, strict=True):
                signed = math.copysign(1.0, sign * factor) * asked
                oracle.suggest(state, [search.at(signed, abs(factor)) for search in searches])
        return candidate


def _asked(dual_point: Tensor) -> FloatArray | None:
    """What the oracle is asked for one of the signs, (n,): the dual point in units of its size, one direction of outputs."""
    duals = dual_point.numpy() / power_of_two_scale(dual_point.numpy())
    if duals.shape[1] == 1 or not np.isfinite(duals).all():
        return duals[:, 0]
    directions = RowSpace.of(duals).rows
    return directions[:, 0] if directions.shape[1] == 1 else None


def _factor(asked: FloatArray, duals: FloatArray) -> float:
    """The number by which ``duals`` have to be multiplied."""
    return float(asked @ duals) / float(duals @ duals)


def _objective(problem: TrainingProblem) -> tuple[AbstractDualObjective, float]:
    """The dual objective in units in which numbers are about one, and the unit of its dual points."""
    loss = problem.loss
    targets = loss.targets[:, 0].numpy()
    if isinstance(loss, LogisticLoss):
        positive = targets * float(loss.positive_weight.reshape(-1)[0])
        return EntropyObjective(positive=positive, negative=1.0 - targets), 1.0 / loss.normalizer
    if isinstance(loss, SoftmaxLoss):
        return EntropyObjective(positive=targets, negative=loss.targets[:, 1].numpy()), 1.0 / loss.normalizer
    assert isinstance(loss, HuberFamilyLoss)
    if problem.spec.output_bias:
        targets = targets - problem.null_outputs()[:, 0].numpy()
    largest = float(np.abs(targets).max(initial=0.0))
    bound, curvature = loss.slope_bound / loss.normalizer, loss.normalizer * loss.width
    unit = min(bound, largest / curvature if curvature > 0.0 else math.inf)
    size, out = max(largest, 1e-300), max(unit, 1e-300)  # without targets, or beyond all numbers: of no use, unit says so
    return QuadraticObjective(targets=targets / size, curvature=curvature * unit / size, slope_bound=bound / out), unit
