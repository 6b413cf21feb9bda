"""The convex part of training: magnitudes and output directions of given branches, and branches that can be merged."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_strongdual.certification._restricted.restricted_primal import has_kinks, solve_restricted_primal
from torch_strongdual.certification._working_branches import WorkingBranches
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.training_problem import TrainingProblem

__all__ = ["has_kinks", "merged", "refitted"]

_PARALLEL = 1e-7
_ITERATIONS = 500  # first-order steps are for finding which branches go; descent does the rest


def refitted(
    problem: TrainingProblem,
    branches: WorkingBranches,
    *,
    rtol: float,
    deadline: Deadline,
) -> WorkingBranches:
    """Optimise the last layers (and the bias) of the branches, those of zero magnitude included; drop what is not used.

    Args:
        problem: What is minimised.
        branches: Their hidden layers stay, at unit norm.
        rtol: Relative gap over this restricted problem to reach.
        deadline: When to stop.
    """
    norms = [torch.linalg.matrix_norm(weight) for weight in branches.weights[:-1]]
    scale = torch.stack(norms).prod(dim=0)[:, None]
    unit = branches.with_coefficients(branches.weights[-1][:, :, 0] * scale, branches.output_bias)
    sizes = torch.linalg.vector_norm(features := unit.features(problem), dim=0)
    useful = torch.isfinite(sizes) & (sizes > 1e-12 * sizes.max().clamp(min=1e-300)) if unit.number else sizes.bool()
    unit, features = unit.kept(useful), features[:, useful]
    if unit.number == 0:
        return _with_fitted_bias(problem, unit)
    start = unit.weights[-1][:, :, 0]
    found = solve_restricted_primal(problem, features, start, rtol=rtol, deadline=deadline, max_iterations=_ITERATIONS)
    coefficients = found.coefficients
    return _with_fitted_bias(problem, unit.with_coefficients(coefficients, branches.output_bias).alive())


def _with_fitted_bias(problem: TrainingProblem, branches: WorkingBranches) -> WorkingBranches:
    if branches.output_bias is None:
        return branches
    without = branches.with_bias(torch.zeros_like(branches.output_bias))
    fitted = branches.with_bias(problem.loss.fitted_bias(without.outputs(problem)))
    return fitted if fitted.objective(problem) < branches.objective(problem) else branches


def merged(problem: TrainingProblem, branches: WorkingBranches) -> WorkingBranches:
    """One branch for all that have the same hidden layers and output direction up to a factor of 1 + 1e-7.

    Args:
        problem: Tells which inputs of the first layer matter.
        branches: What is merged; magnitudes add up, so the penalty stays.
    """
    if branches.number < 2:
        return branches
    unit = [weight.flatten(1) / torch.linalg.matrix_norm(weight)[:, None].clamp(min=1e-300) for weight in branches.weights]
    if branches.gates is not None:
        unit.append(branches.gates.to(torch.float64)[:, None])
    groups = _groups(torch.cat(unit, dim=1))
    if int(groups.max()) + 1 == branches.number:
        return branches
    magnitudes = branches.magnitudes()
    total = magnitudes.new_zeros(branches.number).index_add(0, groups, magnitudes)
    first = torch.stack([torch.nonzero(groups == group)[0, 0] for group in range(int(groups.max()) + 1)])
    return branches.kept(first).scaled(total[: len(first)] / magnitudes[first].clamp(min=1e-300))


def _groups(points: Tensor) -> Tensor:  # (number, dimension) -> (number,) int64
    """Number those alike equally: each point joins the first group whose founder is near."""
    near = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") <= _PARALLEL
    founder = near.to(torch.int64).argmax(dim=1)  # the first point near it
    while not bool((founder[founder] == founder).all()):
        founder = founder[founder]
    groups: Tensor = torch.unique(founder, return_inverse=True)[1]
    return groups
