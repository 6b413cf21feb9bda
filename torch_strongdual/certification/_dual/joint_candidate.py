"""The joint dual point of a problem, refined over several calls, with what its own multipliers prove."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from torch_strongdual.certification._dual.abstract_joint_candidate import AbstractJointCandidate, JointPoint, JointSituation
from torch_strongdual.certification._dual.joint_dual import JointDual
from torch_strongdual.certification._dual.mixtures import Mixtures, Plan
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles import BoundRequest, BoxBranchAndBound
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.joint_proof import JointProof
from torch_strongdual.certification.oracles.auto_two_layer_oracle import EASY_RANK, HARD_RANK
from torch_strongdual.certification.oracles.row_space import RowSpace
from torch_strongdual.certification.training_problem import TrainingProblem

__all__ = ["JointCandidate"]

_MANY_ROWS, _FROM_MANY = 300, 0.08
_FROM_BOXES, _RESIDUAL_FIRST = 0.03, 0.08
_SPLIT_RANK, _SPLIT_ROWS = 9, 120  # from this rank, up to so many samples, splits on signs get further than boxes
_MIXTURE_RANK = 12  # beyond, boxes take minutes for any bound worth proving
_BOX_ROWS = 1000  # up to the same rank, from so many samples on, boxes do as well on the residual
_EASY_RANK_OF_OUTPUTS = 5  # of several outputs: boxes take longer
_FROM_OUTPUTS, _SPLITS_FIRST, _BOXES_FIRST = 0.03, 0.2, 0.4
_BOXES_OF_OUTPUTS = 8  # up to this rank boxes get far
_SETTLED = 4e-3  # parts settle faster than the whole, for a start made of it
_SLOW, _SLOW_ROUNDS = 0.05, 3  # share of the gap that a refinement closes, and how many of those in a row
_SHORTEST, _SPLIT_FROM = 0.5, 2.5  # refinements for which there must be time, to begin one, and to split
_POLISH = 0.3  # time for better proofs of a point, in units of what the point took
_SLICE = 0.3  # of the time left, for better proofs of a point that only they lack
_LACKING = 0.1  # share of the gap that better proofs could close
_FIRST_SEARCH = 0.5  # of the time left, if it takes longer than such searches mostly do
_WIDEN_AFTER = 4  # refinements that prove nothing better: where that may be for want of columns
_PATIENCE = 25  # refinements that prove nothing better
_LEAST_GAIN = 0.02  # of the gap, for which a box search is worth beginning
_MULTIPLIERS = 0.5  # of what better multipliers of the settled point can gain: what boxes have to promise beyond


class JointCandidate(AbstractJointCandidate):
    """Keeps the iterations of :class:`JointDual`, for branches with one activation.

    The first call iterates until the point of the plain relaxation settles. Later calls refine the relaxation: parts of the
    sphere are split when that is what the bound lacks most, and iterated upon when their multipliers are. Where boxes get
    far, box searches bound points between the settled one and the network's residual, see :class:`Mixtures`, unless better
    multipliers promise more in the time there is.

    Args:
        problem: Any; where the method does not apply, or boxes soon prove anything, there is no candidate.
    """

    share, total_share = 1.0, 0.9

    def __init__(self, problem: TrainingProblem) -> None:
        self._problem = problem
        self._iterations: JointDual | None = None
        self._oracle_state: Any = None
        self._candidate: Tensor | None = None
        self._best_candidate: Tensor | None = None  # of which most is proven by multipliers: parts move the last one about
        self._proof: JointProof | None = None
        self._proven = self._hoped = -math.inf
        self._best = self._before = -math.inf
        self._reached = -math.inf  # by multipliers or boxes
        self._stalls = self._slow = 0
        self._seconds = 0.0  # that the last refinement took
        rank = _rank(problem) if JointDual.supports(problem) else 0
        has_one_output = problem.loss.num_outputs == 1
        self.is_spent = rank <= (EASY_RANK if has_one_output else _EASY_RANK_OF_OUTPUTS)
        if has_one_output and rank <= HARD_RANK and problem.loss.num_samples > _BOX_ROWS:
            self.is_spent = True
        # From any looseness with few samples; from some where the iterations take long to settle, or where boxes may do.
        self.worthwhile_from = _FROM_MANY if problem.loss.num_samples > _MANY_ROWS else 0.0
        if not has_one_output:  # many a residual is certified at once, by boxes or by splits
            self.worthwhile_from = max(self.worthwhile_from, _FROM_OUTPUTS)
            self.residual_share = _BOXES_FIRST if rank <= _BOXES_OF_OUTPUTS else _SPLITS_FIRST
        self._boxes = BoxBranchAndBound(comes_down=False)
        self._mixtures: Mixtures | None = None  # where boxes get far
        if has_one_output and _suits_mixtures(rank, problem.loss.num_samples):
            if rank <= HARD_RANK or problem.loss.num_samples > _MANY_ROWS:
                self.worthwhile_from, self.residual_share = _FROM_BOXES, _RESIDUAL_FIRST
            self.needs_long_steps = True
            self._mixtures = Mixtures(self._value_along, problem.dual_norm_limit, rank=rank)

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
                if not self._iterations.can_split and self._hoped <= self._reached:
                    return None  # nothing moves a settled point but splits
            can_split = left > _SPLIT_FROM * self._seconds
            if not can_split and (point := self._polished(deadline)) is not None:
                return point
            if self._lacks_proof(situation.attainable) and (point := self._polished(deadline.fraction(_SLICE))) is not None:
                return point
            if deadline.remaining < _SHORTEST * self._seconds:
                return None
            if self._stalls >= _WIDEN_AFTER and self._iterations.widen():
                self._stalls = 0
            candidate = self._iterations.refine(split=can_split and self._lacks_parts(situation.attainable), deadline=deadline)
        else:
            candidate = self._iterations.run(deadline=deadline.fraction(0.5), rtol=_SETTLED)
        self._candidate, self._proof = candidate, self._iterations.proof()
        if candidate is None or self._proof is None:
            self.is_spent = True
            return None
        if self._oracle_state is None:  # of boxes, too: they compile
            oracle = self._proof if self._mixtures is None else self._boxes
            self._oracle_state = oracle.init(self._problem.spec, self._problem.inputs)
        spent, left = deadline.elapsed - begin, deadline.remaining
        self._seconds = spent if self._iterations.is_settled else 0.0
        point = self._proven_point(candidate, self._proof, deadline.fraction(min(1.0, _POLISH * spent / max(left, 1e-9))))
        self._learn(point)
        return point

    def _searched(self, mixtures: Mixtures, situation: JointSituation, deadline: Deadline) -> JointPoint | None:
        """A point towards the network's, with what boxes prove of it; ``None`` if time is short, or little to gain."""
        if self._best_candidate is None or deadline.expired:
            return None
        plan = mixtures.next_plan(self._best_candidate, situation, seconds=deadline.remaining)
        if plan is None or not self._is_worthwhile(plan, situation.attainable):
            return None
        begin = deadline.elapsed
        limit = deadline if math.isfinite(plan.value) else deadline.fraction(_FIRST_SEARCH)
        request = BoundRequest(rtol=plan.rtol, floor=situation.sufficient(plan.point), deadline=limit)
        bound = self._boxes.bound(self._oracle_state, plan.point, request)
        is_met = request.is_met(bound.upper, bound.lower)
        mixtures.learn(plan, upper=bound.upper, lower=bound.lower, seconds=deadline.elapsed - begin, is_met=is_met)
        self._reached = max(self._reached, self._problem.scaled_bound(plan.point, max(bound.upper, 1e-300)).value)
        return JointPoint(candidate=plan.point, bound=bound)

    def _is_worthwhile(self, plan: Plan, attainable: float) -> bool:
        """Whether a search promises more than is known, and than better multipliers would soon prove."""
        if not math.isfinite(plan.value):  # the first one, which shows what others cost
            return True
        by_multipliers = self._best + _MULTIPLIERS * (self._hoped - self._best)
        return plan.value >= max(self._reached + _LEAST_GAIN * (attainable - self._reached), by_multipliers)

    def _value_along(self, candidate: Tensor) -> Callable[[float], float]:
        """What bounds on the dual norm of a candidate prove: a parabola in the scale, which is cheaper than the loss."""
        loss, limit = self._problem.loss, self._problem.dual_norm_limit
        top = loss.best_scale(candidate, math.inf)
        half, whole = (loss.dual_objective(share * top * candidate) for share in (0.5, 1.0))

        def value(upper: float) -> float:
            share = min(1.0, limit / max(upper * top, 1e-300))
            return share * (4.0 * half - whole + 2.0 * share * (whole - 2.0 * half))

        return value

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
        is_better = self._proven > self._best
        self._stalls = 0 if is_better else self._stalls + 1
        self._best_candidate = point.candidate if is_better else self._best_candidate
        self._before, self._best = self._best, max(self._best, self._proven)
        self._reached = max(self._reached, self._best)
        self.is_spent = self._stalls > _PATIENCE

    def _lacks_proof(self, attainable: float) -> bool:
        """Whether only better multipliers for the last point would close a part of the gap (for effort only)."""
        if self._problem.loss.num_outputs > 1 or self._iterations is None or self._iterations.can_split:
            return False
        return self._hoped - self._proven > _LACKING * (attainable - self._proven)

    def _lacks_parts(self, attainable: float) -> bool:
        """Whether the relaxation loses more than the accuracy of the multipliers does (for effort only)."""
        if self._iterations is None or not self._iterations.can_split:
            return False
        self._slow = self._slow + 1 if self._best - self._before <= _SLOW * (attainable - self._best) else 0
        if self._hoped - self._proven <= attainable - self._hoped or self._slow >= _SLOW_ROUNDS:
            self._slow = 0
            return True
        return False


def _suits_mixtures(rank: int, num_samples: int) -> bool:
    """Whether boxes get far: for no more samples than a search of a minute serves, nor so few that splits get further."""
    return rank <= _MIXTURE_RANK and num_samples <= _BOX_ROWS and not (rank >= _SPLIT_RANK and num_samples <= _SPLIT_ROWS)


def _rank(problem: TrainingProblem) -> int:
    """Of what the branches see; 0 of data that are not finite."""
    inputs = problem.spec.branch_inputs(problem.inputs).numpy()
    return RowSpace.of(inputs).rank if np.isfinite(inputs).all() else 0
