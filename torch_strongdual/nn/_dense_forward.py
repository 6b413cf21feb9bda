"""The forward pass of a network whose branches are linear layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from torch_strongdual.nn._branch_inputs import flat_branch_inputs
from torch_strongdual.nn._chunk_size import ChunkSize, branches_at_a_time
from torch_strongdual.nn._chunked_outputs import chunked_outputs
from torch_strongdual.nn._layer_calls import are_layers_called
from torch_strongdual.nn._stacked_gated_relu import StackedGatedReLU
from torch_strongdual.nn._stacked_layer import StackedLayer

__all__ = ["dense_outputs"]

Masks = Sequence[Tensor | None]


def dense_outputs(
    inputs: Tensor,  # shape: (..., in_features), or (num_samples, ...) behind nn.Flatten
    linears: Sequence[StackedLayer],
    between: Sequence[Sequence[nn.Module]],
    chunk_size: ChunkSize,
    *,
    flatten: bool,
    recompute: bool,
) -> Tensor:  # shape: (..., out_features)
    """Sum of the outputs of all branches.

    Args:
        inputs: What the network is given.
        linears: All layers with weights.
        between: The modules behind each of them but the last.
        chunk_size: Branches at a time; ``None`` for all at once, ``"auto"`` by their size.
        flatten: Whether a branch begins with nn.Flatten.
        recompute: Whether activations are computed again in the backward pass instead of kept.

    Raises:
        ShapeError: If the inputs do not have the width that the first layer takes.
        InvalidInputError: If they are no tensor.
    """
    flat = flat_branch_inputs(inputs, linears[0].weight.shape[2], flatten=flatten)
    masks = [[module.masks(flat) if isinstance(module, StackedGatedReLU) else None for module in row] for row in between]
    if are_layers_called(inputs, linears, between):
        hidden = linears[0](flat)
        for linear, modules, row in zip(linears[1:], between, masks, strict=True):
            hidden = linear(_activated(modules, row, hidden))
        return _like_inputs(hidden, inputs, flatten=flatten)

    def activations(branches: slice) -> list[Callable[[Tensor], Tensor]]:
        parts = [[None if mask is None else mask[branches] for mask in row] for row in masks]
        return [partial(_activated, modules, row) for modules, row in zip(between, parts, strict=True)]

    outputs = chunked_outputs(
        flat,
        [linear.weight for linear in linears],
        [linear.bias for linear in linears],
        activations,
        branches_at_a_time(chunk_size, flat, linears, recompute=recompute),
        recompute=recompute,
    )
    return _like_inputs(outputs, inputs, flatten=flatten)


def _activated(modules: Sequence[nn.Module], masks: Masks, hidden: Tensor) -> Tensor:
    for module, mask in zip(modules, masks, strict=True):
        hidden = module(hidden) if mask is None else module(hidden, mask)
    return hidden


def _like_inputs(outputs: Tensor, inputs: Tensor, *, flatten: bool) -> Tensor:
    return outputs if flatten or inputs.ndim == 2 else outputs.reshape(*inputs.shape[:-1], outputs.shape[-1])


# What looks at shapes is one step of a graph of torch.fx.
torch.fx.wrap("flat_branch_inputs")
torch.fx.wrap("_like_inputs")
