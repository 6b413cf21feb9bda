"""The joint dual point of a problem, computed over several calls and offered once at each strength."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.joint_dual import JointDual
from torch_strongdual.certification.oracles.auto_two_layer_oracle import boxes_pay
from torch_strongdual.certification.oracles.row_space import RowSpace
from torch_strongdual.certification.training_problem import TrainingProblem

__all__ = ["JointCandidate"]

_MAX_FACTOR = 1.5


class JointCandidate:
    """Keeps the iterations of :class:`JointDual` between calls, so that time spent on them is never lost.

    Args:
        problem: Any; where the method does not apply, there is no candidate.
    """

    def __init__(self, problem: TrainingProblem) -> None:
        self._problem = problem
        self._iterations: JointDual | None = None
        self._factor = 1.0
        self.is_spent = not (JointDual.supports(problem) and _is_relaxed(problem))

    def next_point(self, deadline: Deadline) -> Tensor | None:
        """Go on until the point settles or the time is up; ``None`` if there is nothing to offer any more."""
        if self.is_spent:
            return None
        if self._iterations is None:
            self._iterations = JointDual(self._problem)
        point = self._iterations.run(deadline=deadline)
        self.is_spent = point is None or self._iterations.is_settled
        return point

    def relax(self, ratio: float) -> bool:
        """Use that an oracle proves ``ratio`` < 1 of what the relaxation does; return whether another point is worth a try."""
        factor = min(self._factor / ratio, _MAX_FACTOR) if ratio > 0.0 else _MAX_FACTOR
        if self._iterations is None or not self.is_spent or factor < 1.02 * self._factor:
            return False
        self._factor, self.is_spent = factor, False
        self._iterations.relax(factor)
        return True


def _is_relaxed(problem: TrainingProblem) -> bool:
    """Whether relaxations have the last word on data of this size; where boxes have it, the residual is as good a point."""
    inputs = problem.spec.branch_inputs(problem.inputs).numpy()
    if not np.isfinite(inputs).all():
        return False
    return not boxes_pay(RowSpace.of(inputs).rank, len(inputs), 1, has_relaxation=True)
