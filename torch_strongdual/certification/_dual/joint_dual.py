"""A dual point chosen together with its relaxed dual norm, where rescaling a residual wastes what the relaxation loses."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from torch_strongdual.certification._dual.relaxed_objective import RelaxedObjective
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.abstract_joint_ascent import (
    AbstractJointAscent,
    RelaxedTraining,
)
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.abstract_joint_factor import AbstractJointFactor
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.joint_low_rank import JointLowRank
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.joint_outputs import JointOutputs
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.joint_proof import JointProof
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.joint_splitting import JointSplitting
from torch_strongdual.certification.oracles.row_space import RowSpace, power_of_two_scale
from torch_strongdual.certification.training_problem import TrainingProblem

__all__ = ["JointDual"]

_MEMORY = 1.5e9  # bytes for the moments of all parts
_LOW_RANK_ROUNDS = 8  # between two proofs
_PROOF_ROWS = 1000  # for so many more, as many rounds again, since proofs take longer
_FULL_ROWS = 300  # up to so many, bounds from low-rank factors are improved upon by eigendecompositions
_MAX_ROWS = 3000  # a proof takes some ten factorisations of their number


class JointDual:
    r"""Iterations for the largest :math:`D(\Lambda)` whose doubly nonnegative bounds are at most ``path_decay``.

    Where that relaxation is loose, the residual of even the best network has to be scaled down by all that it loses; this
    point spends the loss where it costs least. It belongs to the problem, not to a network: it is computed once, and can be
    gone on with later. :meth:`refine`
    tightens the relaxation by splits on signs, :meth:`proof` is what the iterations prove of the dual norm without an oracle.

    Args:
        problem: One that :meth:`supports` accepts.
        low_rank_rows: From so many samples on, moments are low-rank factors until the point has settled.

    Raises:
        ValueError: If it does not.

    Example:
        >>> from torch import nn
        >>> from torch_strongdual.nn import ParallelNet
        >>> net = ParallelNet(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False), num_branches=2)
        >>> x, y = torch.eye(2), torch.tensor([[3.0], [4.0]])
        >>> problem = TrainingProblem.from_model(net, x, y, loss=nn.MSELoss(reduction="sum"), path_decay=1.0)
        >>> JointDual(problem).run(deadline=Deadline(5.0)).norm().round(decimals=2).item()
        1.0
    """

    def __init__(self, problem: TrainingProblem, *, low_rank_rows: int = 150) -> None:
        slope = _slope(problem)
        if slope is None:
            names = f"{problem.spec} with {type(problem.loss).__name__}"
            raise ValueError(f"JointDual does not support {names}: see JointDual.supports.")
        self._problem = problem
        inputs = problem.spec.branch_inputs(problem.inputs).numpy()
        input_unit = power_of_two_scale(inputs)
        rows = RowSpace.of(inputs / input_unit).rows
        lengths = np.linalg.norm(rows, axis=1)
        self._kept = kept = lengths > 1e-100 * max(float(np.max(lengths, initial=0.0)), 1e-200)
        self._objective = objective = RelaxedObjective.of(problem, kept)
        unit = float(np.mean(lengths[kept])) if kept.any() else 0.0
        self._ascent: AbstractJointAscent | None = None
        self.is_settled = True
        if not all(0.0 < number < math.inf for number in (unit, objective.dual_unit, objective.dual_unit * unit)):
            return
        self.is_settled = False
        self._rounds = _LOW_RANK_ROUNDS * (1 + int(kept.sum()) // _PROOF_ROWS)
        training = self._training = RelaxedTraining(
            rows=rows[kept] / lengths[kept, None],
            norms=lengths[kept] / unit,
            loss=objective.loss,
            slope=slope,
            path_decay=problem.dual_norm_limit / input_unit / (objective.dual_unit * unit),
            has_bias=problem.spec.output_bias,
            num_outputs=problem.loss.num_outputs,
        )
        if training.num_outputs > 1:
            self._ascent = JointOutputs(training)
        else:
            self._ascent = JointLowRank(training) if len(training.rows) >= low_rank_rows else JointSplitting(training)

    @staticmethod
    def supports(problem: TrainingProblem) -> bool:
        """Squared or Huber loss, or entropies of several outputs; one ReLU (leaky: one output); not too many samples."""
        return _slope(problem) is not None and problem.loss.num_samples <= _MAX_ROWS

    @property
    def can_split(self) -> bool:
        """Whether there is memory for more parts; low-rank factors take too long to settle again after a split."""
        if isinstance(self._ascent, AbstractJointFactor) and len(self._training.rows) > _FULL_ROWS:
            return False
        return self._ascent is not None and self._ascent.num_parts * self._ascent.part_bytes < _MEMORY

    def proof(self) -> JointProof | None:
        """Bounds the dual norm of the point returned last, in the time of a few iterations; ``None`` without a point."""
        if self._ascent is None:
            return None
        return JointProof(self._ascent.leaves, self._ascent.weights, self._kept)

    def refine(self, *, split: bool, deadline: Deadline) -> Tensor | None:
        """Iterate for another round, on a finer partition if asked to; return the point, as :meth:`run` does."""
        if self._ascent is None:
            return None
        if isinstance(self._ascent, JointLowRank) and len(self._training.rows) <= _FULL_ROWS:
            self._ascent = JointSplitting.after(self._ascent, self._training)
        elif split:
            self._ascent.split(max(1, self._ascent.num_parts // 4))
        for _ in range(self._rounds if isinstance(self._ascent, AbstractJointFactor) else 1):
            if math.isnan(self._ascent.advance(lambda: deadline.expired)):
                return None
            if deadline.expired:
                break
        return self._point(self._ascent)

    def widen(self) -> bool:
        """Give narrow factors of moments their full width; ``False`` if they have it."""
        return isinstance(self._ascent, AbstractJointFactor) and self._ascent.widen()

    def run(self, *, deadline: Deadline, rtol: float = 1e-3, max_iterations: int = 2000) -> Tensor | None:
        """Iterate until the point changes by less than ``rtol``, relatively, in a round of iterations; return it.

        It is a *candidate*: its dual norm is to be bounded, by :meth:`proof` or by an oracle, as that of any other point.

        Args:
            deadline: When to stop.
            rtol: A round is twenty alternating projections, or 25 steps in low-rank factors.
            max_iterations: At most so many.

        Returns:
            A point in the dual domain, balanced if the output has a bias, shape ``(num_samples, out_features)``; ``None`` if
            numbers are not finite.
        """
        if self._ascent is None:
            return None
        while not self.is_settled and not deadline.expired:
            moved = self._ascent.advance(lambda: deadline.expired)
            # Where time is up, a round says nothing.
            self.is_settled = not (moved > rtol or deadline.expired) or self._ascent.iterations >= max_iterations
        return self._point(self._ascent)

    def _point(self, ascent: AbstractJointAscent) -> Tensor | None:
        """The dual point of the problem that belongs to the relaxed one's."""
        candidate = self._objective.candidate(ascent.dual_point)
        if not bool(torch.isfinite(candidate).all()):
            return None
        return self._problem.loss.balanced(candidate) if self._problem.spec.output_bias else candidate


def _slope(problem: TrainingProblem) -> float | None:
    """The negative slope of the one activation; ``None`` if the problem is not of the kind."""
    spec = problem.spec
    slopes = [a.negative_slope for a in spec.activations if not a.is_identity]
    if not RelaxedObjective.supports(problem):
        return None
    if spec.is_gated or spec.patch_map is not None or len(slopes) != 1 or slopes[0] < 0.0:
        return None
    if slopes[0] > 0.0 and problem.loss.num_outputs > 1:
        return None
    return slopes[0]
