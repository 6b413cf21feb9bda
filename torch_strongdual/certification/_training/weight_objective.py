"""The training objective as a smooth function of all weights, with its gradient: what local descent evaluates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torch_strongdual.certification._working_branches import WorkingBranches
from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.functional import power_penalty, stacked_outputs
from torch_strongdual.losses import AbstractDualLoss

__all__ = ["ValueAndGradient", "weight_objective"]

ValueAndGradient = Callable[[Sequence[Tensor]], tuple[float, Sequence[Tensor]]]
"""Maps the weights of all layers, and the output bias if there is one, to the objective and its gradient in each."""


def weight_objective(problem: TrainingProblem, branches: WorkingBranches, loss: AbstractDualLoss) -> ValueAndGradient:
    """``loss + path_decay * power penalty`` at weights of the shapes and gates of ``branches``.

    Args:
        problem: Inputs, architecture and strength of the penalty.
        branches: Whose shapes and gates.
        loss: The problem's, or a smooth one in its place.
    """
    if problem.spec.num_layers == 2 and problem.spec.patch_map is None:
        return _of_two_layers(problem, branches, loss)
    return _by_autograd(problem, branches, loss)


def _of_two_layers(problem: TrainingProblem, branches: WorkingBranches, loss: AbstractDualLoss) -> ValueAndGradient:
    """The gradient written out: half the time of autograd on some hundred samples, where most of it is overhead."""
    matrix, decay = problem.spec.branch_inputs(problem.inputs), problem.path_decay
    (slope,) = problem.spec.negative_slopes
    mask = _gates_of(problem, branches)  # (number, num_samples)

    @torch.no_grad()
    def evaluate(tensors: Sequence[Tensor]) -> tuple[float, Sequence[Tensor]]:
        first, last = tensors[0][:, 0, :], tensors[1][:, :, 0]
        hidden = first @ matrix.T
        active = hidden if slope == 1.0 else torch.nn.functional.leaky_relu(hidden, slope)
        active = active if mask is None else active * mask
        outputs = (last.T @ active).T.contiguous()
        outputs = outputs if len(tensors) == 2 else outputs + tensors[2]
        value = float(loss.value(outputs)) + 0.5 * decay * float(first.square().sum() + last.square().sum())

        ascent = loss.residual(outputs)  # minus the gradient of the loss
        inner = last @ ascent.T
        if slope != 1.0:
            inner *= hidden > 0 if slope == 0.0 else torch.where(hidden > 0, 1.0, slope)
        if mask is not None:
            inner *= mask
        gradients = [(decay * first - inner @ matrix)[:, None, :], (decay * last - active @ ascent)[:, :, None]]
        return value, [*gradients, *([-ascent.sum(dim=0)] if len(tensors) > 2 else [])]

    return evaluate


def _by_autograd(problem: TrainingProblem, branches: WorkingBranches, loss: AbstractDualLoss) -> ValueAndGradient:
    spec = problem.spec
    grid = None if spec.patch_map is None else spec.patch_map.grid(problem.inputs)
    matrix = spec.branch_inputs(problem.inputs) if grid is None else grid.rows
    gates = _gates_of(problem, branches)
    own = None if gates is None else gates.unsqueeze(1)
    layers = spec.num_layers

    def activation(slope: float, mask: Tensor | None) -> Callable[[Tensor], Tensor]:
        def apply(hidden: Tensor) -> Tensor:
            if slope != 1.0:
                hidden = torch.nn.functional.leaky_relu(hidden, slope)
            return hidden if mask is None else hidden * mask

        return apply

    # Gates multiply whole samples: once, at the end, is enough.
    activations = [activation(slope, own if i == layers - 2 else None) for i, slope in enumerate(spec.negative_slopes)]

    def value(tensors: Sequence[Tensor]) -> Tensor:
        bias = tensors[layers] if len(tensors) > layers else None
        if grid is None:
            outputs = stacked_outputs(matrix, tensors[:layers], [*[None] * (layers - 1), bias], activations)
        else:
            outputs = grid.gather(stacked_outputs(matrix, tensors[:layers], [None] * layers, activations))
            outputs = outputs if bias is None else outputs + bias
        return loss.value(outputs) + problem.path_decay * power_penalty(tensors[:layers]).sum()

    def evaluate(tensors: Sequence[Tensor]) -> tuple[float, Sequence[Tensor]]:
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        with torch.enable_grad():
            total = value(leaves)
            return float(total.detach()), torch.autograd.grad(total, leaves)

    return evaluate


def _gates_of(problem: TrainingProblem, branches: WorkingBranches) -> Tensor | None:  # shape: (number, num_samples)
    masks = problem.spec.gate_masks(problem.inputs)
    return None if masks is None or branches.gates is None else masks[branches.gates]
