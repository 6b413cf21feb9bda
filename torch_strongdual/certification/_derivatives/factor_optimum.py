"""The optimal network as a differentiable function, through the optimality conditions of its own layers (any outputs)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torch_strongdual.certification._derivatives.factor_point import FactorPoint
from torch_strongdual.certification._derivatives.factor_polish import polished_factors
from torch_strongdual.certification._derivatives.factor_problem import FactorProblem
from torch_strongdual.certification._derivatives.implicit_factors import ImplicitFactors
from torch_strongdual.certification._derivatives.kinked_data import KinkedData
from torch_strongdual.certification._restricted.scaled_loss import ScaledLoss
from torch_strongdual.certification._working_branches import WorkingBranches
from torch_strongdual.certification.differentiable_optimum import DifferentiableOptimum
from torch_strongdual.certification.oracles.row_space import RowSpace
from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.errors import InvalidInputError

__all__ = ["factor_optimum"]


def factor_optimum(
    problem: TrainingProblem, branches: WorkingBranches, loss: ScaledLoss, strength: Tensor
) -> DifferentiableOptimum:
    """Polish the branches to a stationary point, and differentiate that.

    Args:
        problem: Of two-layer networks.
        branches: A nearly optimal network, none of them zero.
        loss: The problem's, differentiable in its tensors.
        strength: The problem's path decay, differentiable, on the CPU.

    Raises:
        InvalidInputError: If all inputs are zero, or no branch is left.
        SolverError: If Newton's method does not get to a stationary point.
        NotDifferentiableError: If the optimum has no derivative.
    """
    space = RowSpace.of(problem.spec.branch_inputs(problem.inputs).numpy())
    rows, basis = torch.from_numpy(space.rows), torch.from_numpy(space.basis)
    if space.rank == 0:
        raise InvalidInputError("All `inputs` are zero; expected some that are not: no branch does anything on these.")
    unit = float(torch.linalg.vector_norm(rows, dim=1).max())
    masks, founders = _distinct_masks(problem.spec.gate_masks(problem.inputs))
    limit = strength / (unit * loss.dual_unit)
    factors = FactorProblem(
        data=KinkedData.of(rows / unit, problem.spec.negative_slopes[0], masks), loss=loss.detached(), limit=limit.item()
    )
    scale = math.sqrt(loss.output_unit / unit)
    balanced = branches.balanced()
    bias = balanced.output_bias
    start = FactorPoint(
        first=balanced.weights[0][:, 0] @ basis / scale,
        last=balanced.weights[1][:, :, 0] / scale,
        bias=torch.zeros(0, dtype=torch.float64) if bias is None else bias / loss.output_unit,
        sides=torch.zeros(branches.number, 0, dtype=torch.float64),
        gates=torch.zeros(branches.number, dtype=torch.int64) if branches.gates is None else founders[branches.gates],
    )
    implicit = ImplicitFactors.of(factors, polished_factors(factors, start))
    first, last, shift = implicit.factors(limit, loss)
    first, last = (first * scale) @ basis.T, last * scale
    found = WorkingBranches(
        weights=(first.detach()[:, None], last.detach()[:, :, None]),
        gates=None if branches.gates is None else implicit.point.gates,
        output_bias=None if bias is None else shift.detach(),
    )
    return DifferentiableOptimum(
        first_layers=first,
        output_layers=last,
        output_bias=None if bias is None else shift * loss.output_unit,
        spec=found.to_weights(problem).spec,
    )


def _distinct_masks(masks: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """The masks, and for each the number of the first that equals it."""
    if masks is None:
        return None, torch.zeros(0, dtype=torch.int64)
    equal = (masks[:, None] == masks[None]).all(dim=2)
    return masks, equal.to(torch.int64).argmax(dim=1)
