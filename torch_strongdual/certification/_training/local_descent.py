"""Local optimisation of all weights at once: L-BFGS on the power form of the penalty."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification._working_branches import WorkingBranches
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.functional import power_penalty, stacked_outputs
from torch_strongdual.losses import AbstractDualLoss

__all__ = ["descend"]

FloatArray = NDArray[np.float64]


class _OutOfTime(Exception):  # noqa: N818  (control flow, not an error)
    pass


def descend(
    problem: TrainingProblem,
    branches: WorkingBranches,
    *,
    deadline: Deadline,
    max_iterations: int,
    rtol: float = 1e-14,
    loss: AbstractDualLoss | None = None,
) -> WorkingBranches:
    r"""Lower ``loss + path_decay * power penalty`` from a balanced start, where it equals the product form.

    The power form is smooth and at least the product form, so the product-form objective falls too.

    Args:
        problem: What is minimised.
        branches: Where to start.
        deadline: When to stop; the best point so far is returned.
        max_iterations: Of L-BFGS.
        rtol: Stop when an iteration lowers the objective by less than this part of where it started.
        loss: A smooth loss instead of the problem's.
    """
    if branches.number == 0:
        return branches
    start = branches.balanced()
    tensors = [*start.weights, *([] if start.output_bias is None else [start.output_bias])]
    objective = _objective(problem, start, problem.loss if loss is None else loss)
    flat = _minimised(objective, tensors, deadline, {"maxiter": max_iterations, "ftol": rtol})
    pieces = _split(torch.from_numpy(flat), tensors)
    bias = pieces[-1] if start.output_bias is not None else None
    return dataclasses.replace(start, weights=tuple(pieces[: len(start.weights)]), output_bias=bias).alive()


def _objective(problem: TrainingProblem, start: WorkingBranches, loss: AbstractDualLoss) -> Callable[[list[Tensor]], Tensor]:
    spec = problem.spec
    grid = None if spec.patch_map is None else spec.patch_map.grid(problem.inputs)
    matrix = spec.branch_inputs(problem.inputs) if grid is None else grid.rows
    masks = spec.gate_masks(problem.inputs)
    own = None if masks is None or start.gates is None else masks[start.gates].unsqueeze(1)
    layers = len(start.weights)

    def activation(slope: float, mask: Tensor | None) -> Callable[[Tensor], Tensor]:
        def apply(hidden: Tensor) -> Tensor:
            if slope != 1.0:
                hidden = torch.nn.functional.leaky_relu(hidden, slope)
            return hidden if mask is None else hidden * mask

        return apply

    # Gates multiply whole samples: once, at the end, is enough.
    activations = [activation(slope, own if i == layers - 2 else None) for i, slope in enumerate(spec.negative_slopes)]

    def value(tensors: list[Tensor]) -> Tensor:
        bias = tensors[layers] if len(tensors) > layers else None
        if grid is None:
            outputs = stacked_outputs(matrix, tensors[:layers], [*[None] * (layers - 1), bias], activations)
        else:
            outputs = grid.gather(stacked_outputs(matrix, tensors[:layers], [None] * layers, activations))
            outputs = outputs if bias is None else outputs + bias
        return loss.value(outputs) + problem.path_decay * power_penalty(tensors[:layers]).sum()

    return value


def _minimised(
    objective: Callable[[list[Tensor]], Tensor], tensors: list[Tensor], deadline: Deadline, options: dict[str, float]
) -> FloatArray:
    from scipy.optimize import minimize

    best = torch.cat([tensor.flatten() for tensor in tensors]).numpy()
    best_value = float(objective(tensors))
    unit = abs(best_value) if best_value != 0.0 else 1.0  # the solver's tolerances are absolute

    def evaluate(flat: FloatArray) -> tuple[float, FloatArray]:
        nonlocal best, best_value
        if deadline.expired:
            raise _OutOfTime
        leaves = [piece.requires_grad_() for piece in _split(torch.from_numpy(flat.copy()), tensors)]
        with torch.enable_grad():
            total = objective(leaves)
            gradients = torch.autograd.grad(total, leaves)
        value = float(total.detach())
        if value < best_value:
            best, best_value = flat.copy(), value
        return value / unit, torch.cat([gradient.flatten() for gradient in gradients]).numpy() / unit

    limits = {**options, "maxfun": 4 * options["maxiter"], "maxcor": 30, "gtol": 0.0}
    with contextlib.suppress(_OutOfTime):
        minimize(evaluate, best.copy(), jac=True, method="L-BFGS-B", options=limits)
    return best


def _split(flat: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    pieces = torch.split_with_sizes(flat, [tensor.numel() for tensor in tensors])
    return [piece.reshape(tensor.shape).clone() for piece, tensor in zip(pieces, tensors, strict=True)]
