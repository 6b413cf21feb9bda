"""The joint dual point of a problem, refined over several calls, with what its own multipliers prove."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from torch_strongdual.certification._dual.abstract_joint_candidate import AbstractJointCandidate, JointPoint, JointSituation
from torch_strongdual.certification._dual.joint_dual import JointDual
from torch_strongdual.certification._dual.mixtures import Mixtures
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles import BoundRequest, BoxBranchAndBound
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.joint_proof import JointProof
from torch_strongdual.certification.oracles.auto_two_layer_oracle import EASY_RANK, HARD_RANK
from torch_strongdual.certification.oracles.row_space import RowSpace
from torch_strongdual.certification.training_problem import TrainingProblem

__all__ = ["JointCandidate"]

_MANY_ROWS, _FROM_MANY = 300, 0.08
_FROM_BOXES, _RESIDUAL_FIRST = 0.03, 0.2
_SPLIT_RANK, _SPLIT_ROWS = 9, 120  # from this rank, up to so many samples, splits on signs get further than boxes
_EASY_RANK_OF_OUTPUTS = 5  # of several outputs: boxes take longer
_SETTLED = 4e-3  # parts settle faster than the whole, for a start made of it
_SLOW, _SLOW_ROUNDS = 0.05, 3  # share of the gap that a refinement closes, and how many of those in a row
_SHORTEST, _SPLIT_FROM = 0.5, 2.5  # refinements for which there must be time, to begin one, and to split
_POLISH = 0.3  # time for better proofs of a point, in units of what the point took
_PATIENCE = 25  # refinements that prove nothing better
_SEARCH_RTOL = 2e-3  # of box searches


class JointCandidate(AbstractJointCandidate):
    """Keeps the iterations of :class:`JointDual`, for branches with one activation.

    The first call iterates until the point of the plain relaxation settles. Later calls refine the relaxation: parts of the
    sphere are split when that is what the bound lacks most, and iterated upon when their multipliers are. Where boxes get
    far, box searches bound points between the settled one and the network's residual: the first was chosen for a relaxation
    that is looser than boxes and is easy for them, the other would be best if its dual norm were known, but is hard.

    Args:
        problem: Any; where the method does not apply, or boxes soon prove anything, there is no candidate.
    """

    share, total_share = 1.0, 0.9

    def __init__(self, problem: TrainingProblem) -> None:
        self._problem = problem
        self._iterations: JointDual | None = None
        self._oracle_state: Any = None
        self._box_state: Any = None
        self._candidate: Tensor | None = None
        self._proof: JointProof | None = None
        self._proven = self._hoped = -math.inf
        self._best = self._before = -math.inf
        self._stalls = self._slow = 0
        self._seconds = 0.0  # that the last refinement took
        rank = _rank(problem) if JointDual.supports(problem) else 0
        has_one_output = problem.loss.num_outputs == 1
        self.is_spent = rank <= (EASY_RANK if has_one_output else _EASY_RANK_OF_OUTPUTS)
        # From any looseness with few samples; from some where the iterations take long to settle, or where boxes may do.
        self.worthwhile_from = _FROM_MANY if problem.loss.num_samples > _MANY_ROWS else 0.0
        self._boxes = BoxBranchAndBound()
        self._mixtures: Mixtures | None = None  # where boxes get far
        if has_one_output and rank <= HARD_RANK and not (rank >= _SPLIT_RANK and problem.loss.num_samples <= _SPLIT_ROWS):
            self.worthwhile_from, self.residual_share = _FROM_BOXES, _RESIDUAL_FIRST
            self._mixtures = Mixtures()

    @property
    def has_begun(self) -> bool:
        """See :meth:`AbstractJointCandidate.has_begun`."""
        return self._iterations is not None

    def next_point(self, deadline: Deadline, situation: JointSituation) -> JointPoint | None:
        """See :meth:`AbstractJointCandidate.next_point`: the network has a part in points that boxes bound only.

        The first call, which is long, takes half the time at most.
        """
        if self.is_spent:
            return None
        if self._iterations is None:
            self._iterations = JointDual(self._problem)
        begin, left = deadline.elapsed, deadline.remaining
        if self._iterations.is_settled:
            if self._mixtures is not None:
                if (point := self._searched(self._mixtures, situation, deadline)) is not None:
                    return point
                if not self._iterations.can_split:
                    return None  # nothing moves a settled point but splits
            can_split = left > _SPLIT_FROM * self._seconds
            if not can_split and (point := self._polished(deadline)) is not None:
                return point
            if deadline.remaining < _SHORTEST * self._seconds:
                return None
            candidate = self._iterations.refine(split=can_split and self._lacks_parts(situation.attainable), deadline=deadline)
        else:
            candidate = self._iterations.run(deadline=deadline.fraction(0.5), rtol=_SETTLED)
        self._candidate, self._proof = candidate, self._iterations.proof()
        if candidate is None or self._proof is None:
            self.is_spent = True
            return None
        if self._oracle_state is None:
            self._oracle_state = self._proof.init(self._problem.spec, self._problem.inputs)
        spent, left = deadline.elapsed - begin, deadline.remaining
        self._seconds = spent if self._iterations.is_settled else 0.0
        point = self._proven_point(candidate, self._proof, deadline.fraction(min(1.0, _POLISH * spent / max(left, 1e-9))))
        self._learn(point)
        return point

    def _searched(self, mixtures: Mixtures, situation: JointSituation, deadline: Deadline) -> JointPoint | None:
        """A point towards the network's, with what boxes prove of it; ``None`` if there is no time for that."""
        if self._candidate is None or deadline.expired:
            return None
        candidate = mixtures.next_between(situation.near, self._candidate, deadline.remaining)
        if candidate is None:
            return None
        begin = deadline.elapsed
        if self._box_state is None:
            self._box_state = self._boxes.init(self._problem.spec, self._problem.inputs)
        request = BoundRequest(rtol=_SEARCH_RTOL, floor=situation.sufficient(candidate), deadline=deadline)
        bound = self._boxes.bound(self._box_state, candidate, request)
        mixtures.learn(seconds=deadline.elapsed - begin, is_met=request.is_met(bound.upper, bound.lower))
        return JointPoint(candidate=candidate, bound=bound)

    def _polished(self, deadline: Deadline) -> JointPoint | None:
        """The last point with a better proof, in what time is left; ``None`` if there is none."""
        if self._candidate is None or self._proof is None or deadline.expired:
            return None
        before = self._proven
        point = self._proven_point(self._candidate, self._proof, deadline)
        self._learn(point)
        return point if self._proven > before else None

    def _proven_point(self, candidate: Tensor, proof: JointProof, deadline: Deadline) -> JointPoint:
        request = BoundRequest(floor=self._problem.dual_norm_limit, deadline=deadline)
        return JointPoint(candidate=candidate, bound=proof.bound(self._oracle_state, candidate, request))

    def _learn(self, point: JointPoint) -> None:
        self._proven = self._problem.scaled_bound(point.candidate, max(point.bound.upper, 1e-300)).value
        scale = self._problem.loss.best_scale(point.candidate, 1.0)
        self._hoped = self._problem.loss.dual_objective(scale * point.candidate)
        self._stalls = 0 if self._proven > self._best else self._stalls + 1
        self._before, self._best = self._best, max(self._best, self._proven)
        self.is_spent = self._stalls > _PATIENCE

    def _lacks_parts(self, attainable: float) -> bool:
        """Whether the relaxation loses more than the accuracy of the multipliers does (for effort only)."""
        if self._iterations is None or not self._iterations.can_split:
            return False
        self._slow = self._slow + 1 if self._best - self._before <= _SLOW * (attainable - self._best) else 0
        if self._hoped - self._proven <= attainable - self._hoped or self._slow >= _SLOW_ROUNDS:
            self._slow = 0
            return True
        return False


def _rank(problem: TrainingProblem) -> int:
    """Of what the branches see; 0 of data that are not finite."""
    inputs = problem.spec.branch_inputs(problem.inputs).numpy()
    return RowSpace.of(inputs).rank if np.isfinite(inputs).all() else 0
