"""Adding branches with the step size that lowers the objective most."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from torch_strongdual.certification._working_branches import WorkingBranches
from torch_strongdual.certification.training_problem import TrainingProblem

__all__ = ["best_step", "grown", "random_branches"]

_PRECISION = 1e-10  # of a step, relative
_RESOLUTION = 1e-15  # of the longest step looked at


def best_step(problem: TrainingProblem, outputs: Tensor, direction: Tensor, cost: float) -> float:
    """Minimise the convex ``loss(outputs + t direction) + cost t`` over ``t >= 0``: a root of its slope.

    Args:
        problem: Whose loss it is.
        outputs: Where to start, shape ``(num_samples, out_features)``.
        direction: Of the same shape.
        cost: Not negative.
    """
    from scipy.optimize import brentq

    def slope(step: float) -> float:
        return cost - float((problem.loss.residual(outputs + step * direction) * direction).sum())

    length = float(torch.linalg.vector_norm(direction))
    if not 0.0 < length < float("inf") or slope(0.0) >= 0.0:
        return 0.0
    low = 0.0
    high = (float(torch.linalg.vector_norm(problem.loss.targets - outputs)) + 1e-3) / length
    for _ in range(60):
        if slope(high) >= 0.0:
            break
        low, high = high, 4.0 * high
    if slope(high) <= 0.0:
        return high
    resolution = _RESOLUTION * high
    root = float(brentq(slope, low, high, xtol=resolution, rtol=_PRECISION, maxiter=200))
    # Where the slope is still negative, so that the objective has fallen all the way.
    return max(low, root * (1.0 - 2.0 * _PRECISION) - 2.0 * resolution)


def grown(
    problem: TrainingProblem, branches: WorkingBranches, candidates: WorkingBranches, *, one_by_one: bool
) -> WorkingBranches:
    """Add those of ``candidates`` (unit norm) that lower the objective, pointing the last layers along the residual.

    Args:
        problem: Whose objective it is.
        branches: The network.
        candidates: What may be added.
        one_by_one: One line search for each, against what the earlier ones have left; otherwise one for all together.
    """
    if candidates.number == 0:
        return branches
    outputs = branches.outputs(problem)
    features = candidates.features(problem)
    slopes = features.T @ problem.loss.residual(outputs)  # (number, out): what a last layer is best aligned with
    strengths = torch.linalg.vector_norm(slopes, dim=1)
    order = torch.argsort(strengths, descending=True)
    order = order[strengths[order] > problem.path_decay * (1.0 + 1e-12)]
    steps = torch.zeros_like(strengths)
    last = torch.zeros_like(slopes)
    if not one_by_one:
        last[order] = slopes[order] / strengths[order, None]
        steps[order] = best_step(problem, outputs, features @ last, problem.path_decay * len(order))
    for index in order.tolist() if one_by_one else []:
        slope = features[:, index] @ problem.loss.residual(outputs)
        size = float(torch.linalg.vector_norm(slope))
        if size <= problem.path_decay * (1.0 + 1e-12):
            continue
        last[index] = slope / size
        direction = torch.outer(features[:, index], last[index])
        steps[index] = best_step(problem, outputs, direction, problem.path_decay)
        outputs = outputs + float(steps[index]) * direction
    return branches.joined(candidates.with_coefficients(last * steps[:, None], None)).alive()


def random_branches(problem: TrainingProblem, number: int, generator: torch.Generator) -> WorkingBranches:
    """Branches of unit norm in random directions; half of them drawn with inputs scaled to equal size."""
    spec = problem.spec
    widths = (spec.in_features, *spec.hidden_widths[:-1], 1, spec.out_features)
    weights = [
        torch.randn(number, fan_out, fan_in, generator=generator, dtype=torch.float64) for fan_in, fan_out in pairwise(widths)
    ]
    spread = problem.spec.branch_inputs(problem.inputs).square().mean(dim=0).sqrt()
    weights[0][1::2] /= torch.where(spread > 0, spread, 1.0)
    for weight in weights[1:-1]:
        weight[::2] = weight[::2].abs()  # layers that are not negative keep what is active active
    gates = None
    if spec.is_gated:
        num_gates = next(a for a in spec.activations if a.is_gated).gate_vectors[0].shape[0]
        gates = torch.arange(number) % num_gates
    bias = torch.zeros(spec.out_features, dtype=torch.float64) if spec.output_bias else None
    units = tuple(weight / torch.linalg.matrix_norm(weight)[:, None, None].clamp(min=1e-300) for weight in weights)
    return WorkingBranches(weights=units, gates=gates, output_bias=bias)
