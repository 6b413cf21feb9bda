"""The best bound of a run: kept while the training problem stays the same, dropped when it changes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torch_strongdual.certification import Certificate, Deadline, DualSolver, TrainingProblem
from torch_strongdual.certification.oracles import AbstractDualNormOracle
from torch_strongdual.errors import SoundnessError

from ._distinct_gates import with_distinct_gates
from ._fingerprint import data_digest, problem_fingerprint
from ._objective import Objective
from ._plain_state import plain_state
from .certification_record import CertificationRecord

__all__ = ["Attempt", "BoundKeeper"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What came of one certification.

    Args:
        record: The numbers; always there.
        certificate: ``None`` if it failed.
        error: Why it failed.
    """

    record: CertificationRecord
    certificate: Certificate | None = None
    error: Exception | None = None


class BoundKeeper:
    """Certifies one network again and again, on fixed data.

    A new solver starts from the bound that the loss being never negative proves, so that bounds are finite from the start.

    Args:
        inputs: Inputs as the network takes them.
        targets: Targets as the loss takes them.
        loss: The torch module of the loss.
        oracle: Bounds the dual norm; ``None`` chooses.
        rtol: Relative gap up to which a network is called certified.
        time_budget: Seconds for one certification.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        loss: nn.Module,
        *,
        oracle: AbstractDualNormOracle | None,
        rtol: float,
        time_budget: float,
    ) -> None:
        self._inputs, self._targets, self._loss = inputs, targets, loss
        self._oracle, self._rtol, self._time_budget = oracle, rtol, time_budget
        self._digest = data_digest(inputs, targets)
        self._solver: DualSolver | None = None
        self._fingerprint = ""
        self._refuted: SoundnessError | None = None

    @property
    def problem(self) -> TrainingProblem | None:
        """The problem last prepared."""
        return None if self._solver is None else self._solver.problem

    def prepare(self, objective: Objective) -> DualSolver:
        """Return the solver of the problem that ``objective`` is of; a new one if that has changed.

        Where only the strength of the penalty has, what is known of the data and of their branches carries over.

        Raises:
            StrongDualError: If there is no such problem; which one says why.
        """
        penalty = objective.penalty
        problem = TrainingProblem.from_spec(
            objective.weights.spec,
            self._inputs,
            self._targets,
            loss=self._loss,
            path_decay=penalty.path_decay,
            penalty=penalty.penalty,
        )
        problem = dataclasses.replace(problem, spec=with_distinct_gates(problem.spec))
        fingerprint = self._fingerprint_of(problem)
        if self._solver is None or fingerprint != self._fingerprint:
            self._solver, self._fingerprint = self._solver_of(problem), fingerprint
        return self._solver

    def certify(self, find_objective: Callable[[], Objective], *, epoch: int) -> Attempt:
        """Certify what ``find_objective`` gives. Never raises: what goes wrong is in the result.

        Once a bound has been refuted its oracle is not asked again; only the bound that needs no oracle is left.
        """
        deadline = Deadline(self._time_budget)
        objective, solver, certificate = None, None, None
        error: Exception | None = None
        try:
            objective = find_objective()
            solver = self.prepare(objective)
            error = self._refuted
            if error is None:
                certificate = solver.step(objective.weights, rtol=self._rtol, deadline=deadline)
        except SoundnessError as refutation:
            self._refuted = error = refutation
            self._solver = solver = None if solver is None else self._fresh(solver.problem)
        except Exception as failure:  # whatever it is, training goes on
            error = failure
        primal_value = _primal_value(solver, objective) if certificate is None else certificate.primal_value
        record = _record(solver, primal_value, epoch=epoch, seconds=deadline.elapsed)
        return Attempt(record=record, certificate=certificate, error=error)

    def state_dict(self) -> dict[str, Any]:
        """Bound, witnesses, and what tells whether they may be trusted; as checkpoints may hold it."""
        if self._solver is None:
            return {}
        return {"fingerprint": self._fingerprint, "solver": plain_state(self._solver.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Take up the bound in ``state`` and return ``True``, if it is of the problem prepared; return ``False`` if not."""
        if self._solver is None or state.get("fingerprint") != self._fingerprint:
            return False
        try:
            self._solver.load_state_dict(state["solver"])
            if math.isnan(self._solver.best.value):
                raise ValueError("The bound is NaN.")
        except (LookupError, TypeError, ValueError):  # of another version of this package
            self._solver = self._fresh(self._solver.problem)
            return False
        return True

    def _fingerprint_of(self, problem: TrainingProblem) -> str:
        return problem_fingerprint(self._digest, problem, self._loss)

    def _solver_of(self, problem: TrainingProblem) -> DualSolver:
        """A solver for ``problem``; the one there is, at another strength, if that is all that differs."""
        before = self._solver
        if before is not None and self._refuted is None:
            same = dataclasses.replace(problem, path_decay=before.problem.path_decay)
            if self._fingerprint_of(same) == self._fingerprint:
                return _with_zero(before.at_path_decay(problem.path_decay))
        return self._fresh(problem)

    def _fresh(self, problem: TrainingProblem) -> DualSolver:
        solver = DualSolver(problem, self._oracle)
        solver.prepare()
        return _with_zero(solver)


def _with_zero(solver: DualSolver) -> DualSolver:
    """Offer the bound that needs no oracle."""
    zero = torch.zeros_like(solver.problem.loss.targets)
    solver.offer(solver.problem.scaled_bound(zero, 0.0), {"dual_point_from": "zero"})
    return solver


def _primal_value(solver: DualSolver | None, objective: Objective | None) -> float:
    """What is still known where certification failed; why it failed is reported already."""
    if solver is None or objective is None:
        return math.nan
    try:
        return solver.problem.primal(objective.weights).value
    except Exception:
        return math.nan


def _record(solver: DualSolver | None, primal_value: float, *, epoch: int, seconds: float) -> CertificationRecord:
    if solver is None:  # there is no problem to speak of
        return CertificationRecord(
            epoch=epoch,
            primal_value=math.nan,
            dual_bound=-math.inf,
            relative_gap=math.inf,
            path_decay=math.nan,
            seconds=seconds,
        )
    return CertificationRecord(
        epoch=epoch,
        primal_value=float(primal_value),
        dual_bound=float(solver.best.value),
        relative_gap=_relative_gap(solver, primal_value),
        path_decay=solver.problem.path_decay,
        seconds=seconds,
    )


def _relative_gap(solver: DualSolver, primal_value: float) -> float:
    """The gap relative to the objective, as certificates have it, and finite wherever it can be.

    Of a loss that is never negative the gap is at most the objective itself, whatever that is: 1, also where it is NaN.
    """
    bound = solver.best.value
    if math.isfinite(primal_value) and math.isfinite(bound):
        scale = solver.scale(primal_value, bound)
        if primal_value == bound:
            return 0.0
        if scale > 0.0:
            return float((primal_value - bound) / scale)
    return 1.0 if solver.problem.loss.is_non_negative else math.inf
