"""The forward pass of stacked branches, without a loop over them: the fast path that training uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["first_layer", "hidden_layer", "side_by_side", "stacked_outputs", "summed_layer"]


def stacked_outputs(
    inputs: Tensor,  # shape: (num_samples, in_features)
    weights: Sequence[Tensor],  # L of shape (num_branches, out, in)
    biases: Sequence[Tensor | None],  # L - 1 of shape (num_branches, out), the last of shape (out_features,)
    activations: Sequence[Callable[[Tensor], Tensor]],  # L - 1 maps of tensors of shape (num_branches, hidden, num_samples)
) -> Tensor:  # shape: (num_samples, out_features)
    r"""Sum of the outputs of all branches :math:`\sum_k \phi_k(X) W_{L,k} + b`.

    The first layer shares its input, so it is one product as wide as all branches together; the last layer sums over branches,
    so it is one product too; those in between are batched products. Activations are kept features first,
    ``(num_branches, hidden, num_samples)``: then no layer has to copy them. A single branch makes the very calls that
    :class:`torch.nn.Linear` makes, so its numbers are those of :class:`torch.nn.Sequential` bit for bit.

    Args:
        inputs: Matrix that the first layer multiplies.
        weights: Stacked weights in the layout of :class:`torch.nn.Linear`, all layers.
        biases: ``None`` for a layer without; the last one is shared by the branches.
        activations: What stands behind each hidden layer.

    Returns:
        Outputs in the dtype of the products: that of autocast where it is on.

    Example:
        >>> x, weights = torch.tensor([[1.0, -2.0]]), [torch.eye(2)[None], torch.ones(1, 1, 2)]
        >>> stacked_outputs(x, weights, [None, None], [torch.relu])
        tensor([[1.]])
    """
    hidden = first_layer(inputs, weights[0], biases[0])
    for weight, bias, activation in zip(weights[1:-1], biases[1:-1], activations[:-1], strict=True):
        hidden = hidden_layer(activation(hidden), weight, bias)
    return summed_layer(activations[-1](hidden), weights[-1], biases[-1])


def side_by_side(weight: Tensor) -> Tensor:  # (num_branches, out, in) -> (out, num_branches * in)
    """Put the branches' matrices next to each other.

    An axis of length one is dropped and not transposed: its gradient would get back that axis with another stride than the
    weight has, of which DistributedDataParallel warns.
    """
    num_branches, fan_out, fan_in = weight.shape
    if num_branches == 1:
        return weight.flatten(0, 1)
    if fan_out == 1:
        return weight.reshape(1, num_branches * fan_in)
    return weight.squeeze(2).T if fan_in == 1 else weight.transpose(0, 1).flatten(1)


def first_layer(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # shape: (num_branches, out, num_samples)
    """The first linear layer, as wide as all branches together, on ``inputs`` of shape ``(num_samples, in)``."""
    if weight.shape[0] == 1:
        return functional.linear(inputs, weight.squeeze(0), None if bias is None else bias.squeeze(0)).T.unsqueeze(0)
    wide = weight.flatten(0, 1)
    if inputs.layout is not torch.strided:  # sparse matrices are multiplied from the right only
        product = functional.linear(inputs, wide, None if bias is None else bias.flatten()).T
        return product.reshape(*weight.shape[:2], inputs.shape[0])
    product = wide @ inputs.T if bias is None else torch.addmm(bias.reshape(-1, 1), wide, inputs.T)
    return product.reshape(*weight.shape[:2], inputs.shape[0])


def hidden_layer(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # shape: (num_branches, out, num_samples)
    """One linear layer a branch, on ``hidden`` of shape ``(num_branches, in, num_samples)``."""
    if weight.shape[0] == 1:
        single_bias = None if bias is None else bias.squeeze(0)
        return functional.linear(hidden.squeeze(0).T, weight.squeeze(0), single_bias).T.unsqueeze(0)
    return torch.bmm(weight, hidden) if bias is None else torch.baddbmm(bias.unsqueeze(-1), weight, hidden)


def summed_layer(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # shape: (num_samples, out)
    """The last linear layer, summed over branches, on ``hidden`` of shape ``(num_branches, in, num_samples)``."""
    features = hidden.flatten(0, 1)
    if weight.shape[0] == 1:
        return functional.linear(features.T, weight.squeeze(0), bias)
    # Outputs first, as the features are: MKL takes fifty times longer for the product of the two transposed matrices.
    wide = side_by_side(weight)
    outputs = wide @ features if bias is None else torch.addmm(bias.unsqueeze(1), wide, features)
    return outputs.T.contiguous()
