"""Coefficients of given atoms: the choice between a cone program and first-order steps."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_strongdual.certification._restricted.absolute_lasso import solve_absolute_lasso
from torch_strongdual.certification._restricted.group_lasso import GroupLassoResult, solve_group_lasso
from torch_strongdual.certification._restricted.program_data import ProgramData
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.errors import MissingDependencyError, SolverError
from torch_strongdual.losses import HuberFamilyLoss

__all__ = ["RestrictedPrimal", "has_kinks", "solve_restricted_primal"]

# Atoms times samples times outputs: up to the first size Clarabel takes no longer than sixty first-order steps; up to the
# second it was 2 to 12 times faster than as many as it takes, and eight times slower at 240 000 with ten outputs.
_SMALL_PROGRAM, _LARGEST_PROGRAM = 16_000, 100_000
# The same for the absolute loss. Measured on random atoms, both to 1e-9: at 1.2 and 1.5 million alternating directions took 2.8
# and 1.4 s, Clarabel 5.5 and 7.2 s. On branches of trained networks, many of them nearly equal, alternating directions need ten
# times the steps: at 40 000 numbers 10 s where Clarabel takes 0.5.
_LARGEST_ABSOLUTE = 1_000_000
_KINK_RTOL = 1e-8  # cheap once the kinks are known, and column generation needs good multipliers
_FEW = 60
_SECONDS_TO_IMPORT = 0.5  # Clarabel, once a process
_ZERO = 1e-7  # an interior point method leaves no exact zeros: relative to the largest coefficient


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RestrictedPrimal:
    """A (nearly) optimal network made of given atoms.

    Args:
        coefficients: Shape ``(num_atoms, out_features)``; exactly zero rows for atoms not used.
        outputs: Shape ``(num_samples, out_features)``, bias fitted if there is one.
        objective: What they attain, a plain float64 evaluation.
        multipliers: Dual point of the cone program or of alternating directions, where one was found.
        solver: ``"cone program"``, ``"group lasso"`` or ``"alternating directions"``.
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
    as_cone_program: bool = False,
    max_iterations: int = 20_000,
) -> RestrictedPrimal:
    """Minimise ``loss(atoms V + 1 b') + dual_norm_limit * sum_j |V_j|`` over V and b.

    A cone program is exact to 1e-9; where it is small it takes a tenth to a hundredth of the time of first-order steps, and
    where it is larger a few of these come first: an easy problem ends with them. They also solve what is left: large problems,
    and those that Clarabel fails on or has no time to be imported for. The absolute loss has no gradient where it matters: it
    is a cone program, or is left to alternating directions where that is large, fails or lacks Clarabel.

    Args:
        problem: Loss, penalty and bias.
        atoms: Features of unit branches, not zero.
        start: Coefficients to start from; the result of a cone program that is worse than these is not used.
        rtol: Relative gap of the first-order steps at which to stop.
        deadline: When to stop.
        as_cone_program: Whether Clarabel solves what it is suited for, or the absolute loss only.
        max_iterations: Of the first-order steps, at most; alternating directions are many and cheap, and have their own limit.
    """
    if has_kinks(problem):
        return _of_absolute_loss(problem, atoms, start, rtol=rtol, deadline=deadline)
    size = atoms.numel() * problem.loss.num_outputs
    has_time = "clarabel" in sys.modules or deadline.remaining > _SECONDS_TO_IMPORT
    if as_cone_program and size <= _LARGEST_PROGRAM and has_time:
        if size > _SMALL_PROGRAM:
            first = solve_group_lasso(problem, atoms, start, rtol=rtol, deadline=deadline, max_iterations=_FEW)
            if first.relative_gap <= rtol:
                return _by_first_order(first)
            start = first.coefficients
        try:
            found = _by_cone_program(problem, atoms, deadline)
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


def _of_absolute_loss(
    problem: TrainingProblem, atoms: Tensor, start: Tensor, *, rtol: float, deadline: Deadline
) -> RestrictedPrimal:
    if atoms.numel() * problem.loss.num_outputs <= _LARGEST_ABSOLUTE:
        with contextlib.suppress(SolverError, MissingDependencyError):
            return _by_cone_program(problem, atoms, deadline)
    data = ProgramData.of(problem, atoms)
    found = solve_absolute_lasso(data, start, rtol=min(rtol, _KINK_RTOL), deadline=deadline)
    return _evaluated(problem, atoms, found.coefficients, "alternating directions", multipliers=found.multipliers)


def _by_cone_program(problem: TrainingProblem, atoms: Tensor, deadline: Deadline) -> RestrictedPrimal:
    from torch_strongdual.certification._restricted.cone_program import solve_cone_program

    with torch.no_grad():
        found = solve_cone_program(ProgramData.of(problem, atoms), seconds=deadline.remaining)
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
