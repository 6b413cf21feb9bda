"""What is known of the dual of one problem, from call to call of the dual solver."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch_strongdual.certification._dual.abstract_joint_candidate import AbstractJointCandidate, JointPoint, JointSituation
from torch_strongdual.certification._dual.atom_store import AtomStore
from torch_strongdual.certification._dual.deep_joint_candidate import DeepJointCandidate
from torch_strongdual.certification._dual.joint_candidate import JointCandidate
from torch_strongdual.certification._dual.proven_points import ProvenPoints
from torch_strongdual.certification.certificate import SMALLEST_GAP, DualBound
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.dual_norm_bound import DualNormBound
from torch_strongdual.certification.oracles import AbstractDualNormOracle, BoundRequest
from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.errors import SoundnessError

__all__ = ["DualState"]


class DualState:
    """The best bound, the branches and points found on the way to it, and what the parts of the solver keep.

    :class:`DualSolver` owns it; a :class:`SolverRun` reads it and adds what it finds.

    Args:
        problem: What is trained.
        oracle: Bounds the dual norm; it must support the architecture.

    Attributes:
        best: The largest lower bound proven.
        evidence: How that was proven, for certificates.
        attainable: The smallest objective of any network seen or put together.
        atoms: Branches found.
        points: The last points of proven dual norm.
        joint: Dual points that are chosen together with their dual norm.
        residual_bound: The network's residual last bounded, and its bound.
    """

    def __init__(self, problem: TrainingProblem, oracle: AbstractDualNormOracle) -> None:
        self.problem, self.oracle = problem, oracle
        self.best = DualBound.vacuous()
        self.evidence: dict[str, float | str] = {}
        self.attainable = math.inf
        self.atoms = AtomStore()
        self.points = ProvenPoints()
        self.joint: AbstractJointCandidate = (
            DeepJointCandidate(problem) if DeepJointCandidate.supports(problem) else JointCandidate(problem)
        )
        self.residual_bound: tuple[Tensor, DualNormBound] | None = None
        self._oracle_state: Any = None

    def prepare(self) -> None:
        """Let the oracle reduce the data, unless it has."""
        if self._oracle_state is None:
            self._oracle_state = self.oracle.init(self.problem.spec, self.problem.inputs)

    def carry_over(self, other: DualState) -> None:
        """Take over what holds at any path decay from the state of the same problem at another one."""
        self._oracle_state, self.atoms = other._oracle_state, other.atoms.copy()
        self.points = other.points.copy()
        if other.best.dual_point is not None:
            rescaled = self.problem.scaled_bound(other.best.dual_point, other.best.dual_norm_upper)
            self.offer(rescaled, {**other.evidence, "dual_point_from": "another path decay"})

    # Bounds

    def offer(self, bound: DualBound, evidence: Mapping[str, float | str]) -> bool:
        """Keep ``bound`` if it beats the best one; return whether it did."""
        if not bound.value > self.best.value:
            return False
        self.best, self.evidence = bound, dict(evidence)
        return True

    def check_sound(self, attained: float) -> None:
        """A bound above an attained value is a bug in the bound: withdraw it and say so.

        Args:
            attained: Objective of a network.

        Raises:
            SoundnessError: If the best bound lies above it, or above that of the zero net.
        """
        best, attained = self.best.value, min(attained, self.problem.null_value())
        if best > attained:
            self.best = DualBound.vacuous()
            raise SoundnessError(
                f"The dual bound {best!r} came out above an attained objective {attained!r}: a bug in the bound, which has "
                "been withdrawn. Please report it with the data.",
                primal_value=attained,
                dual_bound=best,
            )

    def scale(self, primal_value: float, dual_bound: float) -> float:
        """What gaps are relative to: the objective; for losses that can be negative, the zero net's distance from the bound."""
        return primal_value if self.problem.loss.is_non_negative else self.problem.null_value() - dual_bound

    def relative_gap(self, primal_value: float, dual_bound: float) -> float:
        """Gap between a network of this objective and a bound."""
        gap, scale = primal_value - dual_bound, self.scale(primal_value, dual_bound)
        return 0.0 if gap <= SMALLEST_GAP else gap / scale if scale > 0 else math.inf

    def certifies(self, primal_value: float, rtol: float) -> bool:
        """Whether the best bound proves a network of this objective optimal to a relative tolerance."""
        return math.isfinite(self.best.value) and self.relative_gap(primal_value, self.best.value) <= rtol

    def attain(self, objective: float) -> None:
        """Note that there is a network of this objective."""
        self.attainable = min(self.attainable, objective)

    # Dual norms

    def bound_dual_norm(self, candidate: Tensor, request: BoundRequest) -> DualNormBound:
        """Ask the oracle, and remember its witnesses."""
        found = self.oracle.bound(self._oracle_state, candidate, request)
        self.atoms.add(found.witnesses)
        return found

    def known_residual_bound(self, candidate: Tensor) -> DualNormBound | None:
        """What was proven last, if that was of exactly this dual point: a network that stands still is not bounded afresh."""
        if self.residual_bound is None or not torch.equal(self.residual_bound[0], candidate):
            return None
        return self.residual_bound[1]

    def joint_point(
        self,
        deadline: Deadline,
        *,
        near: Tensor,
        near_norm: float = 0.0,
        sufficient: Callable[[Tensor], float] = lambda candidate: 0.0,
    ) -> JointPoint | None:
        """The next dual point that is chosen together with its dual norm; see :meth:`AbstractJointCandidate.next_point`."""
        situation = JointSituation(
            attainable=self.attainable,
            near=near,
            near_norm=near_norm,
            oracle_state=self._oracle_state,
            sufficient=sufficient,
        )
        return self.joint.next_point(deadline, situation)

    # Keeping

    def as_dict(self) -> dict[str, Any]:
        """What outlives the program, as tensors, numbers and strings only."""
        return {
            "attainable": self.attainable,
            "dual_bound": self.best.value,
            "dual_norm_upper": self.best.dual_norm_upper,
            "dual_point": self.best.dual_point,
            "evidence": dict(self.evidence),
            "joint_dual_is_spent": self.joint.is_spent,
            "points": self.points.state(),
            "witnesses": self.atoms.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`as_dict` gave, for the same problem."""
        point = state["dual_point"]
        self.best = DualBound(value=state["dual_bound"], dual_point=point, dual_norm_upper=state["dual_norm_upper"])
        self.attainable = float(state["attainable"])
        self.evidence = dict(state["evidence"])
        self.atoms = AtomStore.from_state(state["witnesses"])
        self.points = ProvenPoints.from_state(state["points"])
        self.joint.is_spent = self.joint.is_spent or bool(state["joint_dual_is_spent"])
