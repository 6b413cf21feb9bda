"""The dual over a finite set of atoms as a second-order cone program, for losses with kinks."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.errors import MissingDependencyError, SolverError
from torch_strongdual.losses import HuberFamilyLoss

__all__ = ["solve_conic_dual"]


def solve_conic_dual(problem: TrainingProblem, atoms: Tensor) -> Tensor:  # shape: (num_samples, out_features)
    r"""Maximise ``D(Lam)`` subject to ``||Lam' a_j|| <= dual_norm_limit`` for every atom, for the Huber family of losses.

    For the absolute loss (and outputs exactly on a kink) the residual does not determine the dual point; this program does.

    Args:
        problem: Its loss must be a :class:`HuberFamilyLoss`.
        atoms: Features of unit branches, shape ``(num_samples, num_atoms)``.

    Raises:
        SolverError: If Clarabel does not return a solution.
        MissingDependencyError: If cvxpy is not installed.
    """
    try:
        import cvxpy as cp
    except ImportError as error:
        raise MissingDependencyError("cvxpy", purpose="The dual of a loss with kinks") from error
    loss = problem.loss
    if not isinstance(loss, HuberFamilyLoss):
        raise TypeError(f"The conic dual is for the Huber family of losses; got {type(loss).__name__}.")
    targets = loss.targets.numpy()
    size = max(float(np.max(np.abs(targets))), 1e-300)
    reach = loss.slope_bound / loss.normalizer
    unit = reach if math.isfinite(reach) else 1.0
    dual = cp.Variable(targets.shape)  # in units of `unit`, so that the program is well scaled
    objective = cp.sum(cp.multiply(targets / size, dual))
    if loss.width > 0.0:
        objective -= 0.5 * loss.normalizer * loss.width * unit / size * cp.sum_squares(dual)
    lengths = atoms.norm(dim=0)
    constraints = [cp.norm(dual.T @ (atoms / lengths).numpy(), 2, axis=0) <= (problem.dual_norm_limit / unit / lengths).numpy()]
    if math.isfinite(reach):
        constraints.append(cp.abs(dual) <= 1.0)
    if problem.spec.output_bias:
        constraints.append(cp.sum(dual, axis=0) == 0.0)
    program = cp.Problem(cp.Maximize(objective), constraints)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cvxpy warns of inaccurate solutions; any point is made feasible by an oracle anyway
        try:
            program.solve(solver=cp.CLARABEL)
        except cp.error.SolverError as error:
            raise SolverError("The restricted dual was not solved.", solver="Clarabel", solver_status=str(error)) from error
    if dual.value is None:
        raise SolverError("The restricted dual was not solved.", solver="Clarabel", solver_status=str(program.status))
    point = torch.from_numpy(np.asarray(dual.value, dtype=np.float64)) * unit
    return point.clamp(-reach, reach) if math.isfinite(reach) else point
