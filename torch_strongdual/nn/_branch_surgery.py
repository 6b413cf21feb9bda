"""Making, copying, adding, removing and rescaling branches: checks first, then every layer alike."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from torch_strongdual._checks import check_finite, check_floating, check_shape
from torch_strongdual.errors import ShapeError
from torch_strongdual.functional.path_penalty import product_penalty
from torch_strongdual.functional.rebalance import rebalanced
from torch_strongdual.nn._stacked_convolution import CONVOLUTIONS, StackedConvolution
from torch_strongdual.nn._stacked_gated_relu import StackedGatedReLU
from torch_strongdual.nn._stacked_layer import StackedLayer
from torch_strongdual.nn._stacked_linear import StackedLinear
from torch_strongdual.nn.gated_relu import GatedReLU

__all__ = ["append_branches_", "balance_branches_", "copied_layer", "large_branches", "stacked_layer"]


def stacked_layer(
    layer: nn.Module, num_branches: int, *, shared_bias: bool, device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.Module:
    """Stacked form of a layer: branch 0 is a copy of it, the others are drawn afresh."""
    if isinstance(layer, nn.Linear):
        return StackedLinear.from_linear(layer, num_branches, shared_bias=shared_bias, device=device, dtype=dtype)
    if isinstance(layer, CONVOLUTIONS):
        return StackedConvolution.from_convolution(layer, num_branches, device=device, dtype=dtype)
    return StackedGatedReLU.from_gate(layer, num_branches, device) if isinstance(layer, GatedReLU) else deepcopy(layer)


def copied_layer(layer: nn.Module, index: int, num_branches: int) -> nn.Module:
    """Copy of branch ``index``'s part of a layer, with the shared output bias only if there is one branch."""
    if isinstance(layer, StackedLayer):
        return layer.branch_layer(index, with_shared_bias=num_branches == 1)
    return layer.branch_gate(index) if isinstance(layer, StackedGatedReLU) else deepcopy(layer)


def append_branches_(
    linears: Sequence[StackedLayer],
    gates: Sequence[StackedGatedReLU],
    weights: Sequence[Tensor],
    gate_vectors: Sequence[Tensor],
) -> None:
    """Append the branches of a branch weight list; nothing is changed if any tensor does not fit."""
    has_bias_column = linears[0].bias is not None
    if len(weights) != len(linears):
        raise ShapeError(f"`weights` has {len(weights)} tensors; expected {len(linears)}, one for each linear layer.")
    if len(gate_vectors) != len(gates):
        raise ShapeError(f"`gate_vectors` has {len(gate_vectors)} tensors; expected {len(gates)}, one for each GatedReLU.")
    num_added = weights[0].shape[0] if weights[0].ndim else 0
    for index, (linear, weight) in enumerate(zip(linears, weights, strict=True)):
        fan_in = linear.fan_in + int(has_bias_column and index == 0)
        bias_text = ", the first-layer bias as last column" if has_bias_column and index == 0 else ""
        _check_values(f"weights[{index}]", weight, (num_added, linear.fan_out, fan_in), f"(new branches, out, in){bias_text}")
    for index, (layer, vectors) in enumerate(zip(gates, gate_vectors, strict=True)):
        shape = (num_added, layer.gate_vector.shape[1])
        _check_values(f"gate_vectors[{index}]", vectors, shape, "(new branches, in_features)")
    first = weights[0]
    if has_bias_column:
        linears[0].append_(first[..., :-1], first[..., -1])
    else:
        linears[0].append_(first, None)
    for linear, weight in zip(linears[1:], weights[1:], strict=True):
        linear.append_(weight, None)
    for layer, vectors in zip(gates, gate_vectors, strict=True):
        layer.append_(vectors)


def large_branches(weights: Sequence[Tensor], tol: float, *, kinds: Tensor | None = None) -> Tensor:
    """Numbers of the branches whose product penalty exceeds ``tol`` times the largest; the largest one if none does.

    Args:
        weights: Branch weight list.
        tol: Relative to the largest penalty.
        kinds: One row a branch; of those of equal rows the largest is kept in any case, ``None`` for no such wish.
    """
    penalties = product_penalty(_exact(weights))
    is_kept = penalties > tol * penalties.max()
    if not is_kept.any():
        is_kept[penalties.argmax()] = True
    if kinds is not None:
        groups = torch.unique(kinds, dim=0, return_inverse=True)[1]
        for group in set(groups.tolist()) - set(groups[is_kept].tolist()):
            members = torch.nonzero(groups == group)[:, 0]
            is_kept[members[penalties[members].argmax()]] = True
    return torch.nonzero(is_kept)[:, 0]


def balance_branches_(linears: Sequence[StackedLayer], weights: Sequence[Tensor]) -> None:
    """Rebalance every branch; each hidden bias follows the product of the scales of the layers up to its own."""
    before = _exact(weights)
    scales = torch.ones(before[0].shape[0], dtype=torch.float64, device=before[0].device)
    for linear, old, new in zip(linears, before, rebalanced(before), strict=True):
        old_norm, new_norm = torch.linalg.vector_norm(old, dim=(1, 2)), torch.linalg.vector_norm(new, dim=(1, 2))
        layer_scale = torch.where(old_norm > 0, new_norm / old_norm, 1.0)
        scales = scales * layer_scale
        linear.scale_(layer_scale, scales)


def _exact(weights: Sequence[Tensor]) -> list[Tensor]:
    for index, weight in enumerate(weights):
        check_finite(f"weights of linear layer {index}", weight.detach())
    return [weight.detach().to(torch.float64) for weight in weights]


def _check_values(name: str, tensor: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    check_shape(name, tensor, shape, meaning)
    check_floating(name, tensor)
    check_finite(name, tensor)
