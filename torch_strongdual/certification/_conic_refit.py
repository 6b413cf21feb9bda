"""Coefficients of given branches for the absolute loss, by a cone program."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.errors import MissingDependencyError, SolverError

__all__ = ["conic_coefficients"]


def conic_coefficients(problem: TrainingProblem, features: Tensor) -> Tensor:  # shape: (number, out_features)
    r"""Minimise ``loss(features V + 1 b') + path_decay * sum_j ||V_j||`` over V and b for the absolute loss.

    Args:
        problem: Its loss must be the absolute loss.
        features: Of branches of unit norm, no zero columns, shape ``(num_samples, number)``.

    Raises:
        SolverError: If Clarabel does not return a solution.
        MissingDependencyError: If cvxpy is not installed.
    """
    try:
        import cvxpy as cp
    except ImportError as error:
        raise MissingDependencyError("cvxpy", purpose="Optimising with the absolute loss") from error
    targets = problem.loss.targets.numpy()
    size = max(float(np.max(np.abs(targets))), 1e-300)  # outputs are in units of it, features in their own lengths
    lengths = features.norm(dim=0).numpy()
    rows = cp.Variable((len(lengths), targets.shape[1]))
    outputs = (features.numpy() / lengths) @ rows
    if problem.spec.output_bias:
        outputs = outputs + np.ones((len(targets), 1)) @ cp.Variable((1, targets.shape[1]))
    slope = float(problem.loss.residual(problem.loss.targets - 1.0).abs().max())
    prices = problem.path_decay / (slope * lengths)
    value = cp.sum(cp.abs(outputs - targets / size)) + prices @ cp.norm(rows, 2, axis=1)
    program = cp.Problem(cp.Minimize(value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an inaccurate solution is compared with what is known, not trusted
        try:
            program.solve(solver=cp.CLARABEL)
        except cp.error.SolverError as error:
            raise SolverError("The refit was not solved.", solver="Clarabel", solver_status=str(error)) from error
    if rows.value is None:
        raise SolverError("The refit was not solved.", solver="Clarabel", solver_status=str(program.status))
    found = np.asarray(rows.value, dtype=np.float64)
    norms = np.linalg.norm(found, axis=1)
    found[norms <= 1e-7 * norms.max(initial=0.0)] = 0.0  # an interior point method leaves no exact zeros
    return torch.from_numpy(found * (size / lengths)[:, None])
