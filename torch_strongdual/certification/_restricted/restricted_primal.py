"""Coefficients of given atoms: the choice between a cone program and first-order steps."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from torch_strongdual.certification._restricted.group_lasso import GroupLassoResult, solve_group_lasso
from torch_strongdual.certification._restricted.program_data import ProgramData
from torch_strongdual.certification._restricted.restricted_program import RestrictedPrograms, fits_program
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.errors import MissingDependencyError, SolverError
from torch_strongdual.losses import HuberFamilyLoss

__all__ = ["RestrictedPrimal", "has_kinks", "solve_restricted_primal"]

_FEW = 60
_SECONDS_TO_IMPORT = 2.0  # cvxpy and cvxpylayers, once a process
_ZERO = 1e-7  # an interior point method leaves no exact zeros: relative to the largest coefficient


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RestrictedPrimal:
    """A (nearly) optimal network made of given atoms.

    Args:
        coefficients: Shape ``(num_atoms, out_features)``; exactly zero rows for atoms not used.
        outputs: Shape ``(num_samples, out_features)``, bias fitted if there is one.
        objective: What they attain, a plain float64 evaluation.
        multipliers: Dual point of the cone program, where one was solved.
        solver: ``"cone program"`` or ``"group lasso"``.
    """

    coefficients: Tensor
    outputs: Tensor
    objective: float
    multipliers: Tensor | None
    solver: str


def has_kinks(problem: TrainingProblem) -> bool:
    """Whether the loss is the absolute loss, for which neither gradients nor residuals suffice."""
    return isinstance(problem.loss, HuberFamilyLoss) and problem.loss.width == 0.0


def solve_restricted_primal(
    problem: TrainingProblem,
    atoms: Tensor,  # shape: (num_samples, num_atoms)
    start: Tensor,  # shape: (num_atoms, out_features)
    *,
    rtol: float,
    deadline: Deadline,
    programs: RestrictedPrograms | None = None,
    max_iterations: int = 20_000,
) -> RestrictedPrimal:
    """Minimise ``loss(atoms V + 1 b') + dual_norm_limit * sum_j |V_j|`` over V and b.

    A few first-order steps come first: an easy problem ends with them, and needs no further package. What they do not solve
    is a cone program, if the caller keeps ``programs``, it is not too large and there is time to import and canonicalise; it
    is exact to 1e-9, and takes a tenth to a hundredth of the time of first-order steps. Those solve what is left: larger
    problems, and those that Clarabel fails on. The absolute loss always is a cone program.

    Args:
        problem: Loss, penalty and bias.
        atoms: Features of unit branches, not zero.
        start: Coefficients to start from; the result of a cone program that is worse than these is not used.
        rtol: Relative gap of the first-order steps at which to stop.
        deadline: When to stop.
        programs: Programs canonicalised earlier.
        max_iterations: Of the first-order steps, at most.

    Raises:
        SolverError: If the loss is the absolute loss and Clarabel fails.
        MissingDependencyError: If the loss is the absolute loss and cvxpy or cvxpylayers is not installed.
    """
    if has_kinks(problem):
        return _by_cone_program(problem, atoms, RestrictedPrograms() if programs is None else programs, deadline)
    if programs is not None and _suits_cone_program(problem, atoms, programs, deadline):
        if programs.num_solved == 0:
            first = solve_group_lasso(problem, atoms, start, rtol=rtol, deadline=deadline, max_iterations=_FEW)
            if first.relative_gap <= rtol:
                return _by_first_order(first)
            start = first.coefficients
        try:
            found = _by_cone_program(problem, atoms, programs, deadline)
        except (SolverError, MissingDependencyError):
            found = None
        if found is not None and found.objective <= _evaluated(problem, atoms, start, "").objective * (1.0 + 1e-9):
            return found
    return _by_first_order(
        solve_group_lasso(problem, atoms, start, rtol=rtol, deadline=deadline, max_iterations=max_iterations)
    )


def _by_first_order(result: GroupLassoResult) -> RestrictedPrimal:
    return RestrictedPrimal(
        coefficients=result.coefficients,
        outputs=result.outputs,
        objective=result.objective,
        multipliers=None,
        solver="group lasso",
    )


def _suits_cone_program(problem: TrainingProblem, atoms: Tensor, programs: RestrictedPrograms, deadline: Deadline) -> bool:
    is_installed = find_spec("cvxpylayers") is not None and find_spec("cvxpy") is not None
    has_time = programs.num_solved > 0 or deadline.remaining > _SECONDS_TO_IMPORT
    return is_installed and has_time and fits_program(ProgramData.of(problem, atoms).shape)


def _by_cone_program(
    problem: TrainingProblem, atoms: Tensor, programs: RestrictedPrograms, deadline: Deadline
) -> RestrictedPrimal:
    with torch.no_grad():
        found = programs.solve(ProgramData.of(problem, atoms), seconds=deadline.remaining)
    norms = torch.linalg.vector_norm(found.coefficients, dim=1)
    coefficients = torch.where((norms > _ZERO * norms.max())[:, None], found.coefficients, 0.0)
    return _evaluated(problem, atoms, coefficients, "cone program", multipliers=found.dual_point)


def _evaluated(
    problem: TrainingProblem, atoms: Tensor, coefficients: Tensor, solver: str, *, multipliers: Tensor | None = None
) -> RestrictedPrimal:
    outputs = problem.with_fitted_bias(atoms @ coefficients)
    penalty = float(torch.linalg.vector_norm(coefficients, dim=1).sum())
    return RestrictedPrimal(
        coefficients=coefficients,
        outputs=outputs,
        objective=float(problem.loss.value(outputs)) + problem.dual_norm_limit * penalty,
        multipliers=multipliers,
        solver=solver,
    )
