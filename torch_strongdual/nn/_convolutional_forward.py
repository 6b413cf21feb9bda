"""The forward pass of a network whose branches begin with convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from torch_strongdual.errors import ShapeError
from torch_strongdual.functional.averaged_convolution import averaged_outputs
from torch_strongdual.functional.convolved_outputs import convolved_outputs
from torch_strongdual.nn._averaged_branches import averaged_slope
from torch_strongdual.nn._branch_inputs import check_is_tensor
from torch_strongdual.nn._chunk_size import ChunkSize, branches_at_a_time
from torch_strongdual.nn._chunked_outputs import chunked_outputs
from torch_strongdual.nn._layer_calls import are_layers_called, is_traced
from torch_strongdual.nn._stacked_convolution import StackedConvolution
from torch_strongdual.nn._stacked_layer import StackedLayer

__all__ = ["convolutional_outputs"]


def convolutional_outputs(
    inputs: Tensor,  # shape: (num_samples, channels, *spatial)
    linears: Sequence[StackedLayer],
    between: Sequence[Sequence[nn.Module]],
    chunk_size: ChunkSize,
    *,
    recompute: bool,
) -> Tensor:  # shape: (num_samples, out_features)
    """Sum of the outputs of all branches.

    Args:
        inputs: Images or signals.
        linears: Convolutions, then linear layers.
        between: The modules behind each of them but the last.
        chunk_size: Branches at a time; ``None`` for all at once, ``"auto"`` by their size.
        recompute: Whether activations are computed again in the backward pass instead of kept.

    Raises:
        ShapeError: If the inputs are not what the first convolution takes, or the first linear layer gets another width.
        InvalidInputError: If they are no tensor.
    """
    convolutions = [layer for layer in linears if isinstance(layer, StackedConvolution)]
    _check_inputs(inputs, convolutions[0].weight)
    if are_layers_called(inputs, linears, between):
        return _layer_by_layer(inputs, linears, between, len(convolutions))
    activations: list[Callable[[Tensor], Tensor]] = [partial(_in_a_row, modules) for modules in between]
    geometries = [layer.geometry for layer in convolutions]
    evaluate: Callable[..., Tensor] = partial(convolved_outputs, geometries=geometries)
    slope = None
    if inputs.device.type == "cpu" and linears[0].weight.shape[0] > 1 and not is_traced():
        slope = averaged_slope(inputs, linears, between) if _is_finite(inputs) else None
        if any(isinstance(module, nn.MaxPool2d | nn.AdaptiveMaxPool2d) for modules in between for module in modules):
            inputs = _channels_last(inputs)
    if slope is not None:
        evaluate = partial(averaged_outputs, negative_slope=slope, geometry=geometries[0])
        chunk_size = None if chunk_size == "auto" and not recompute else chunk_size  # it goes through memory by itself
    else:
        last = len(convolutions) - 1
        activations[last] = partial(_flattened, between[last], linears[last].fan_out, linears[last + 1].fan_in)
    return chunked_outputs(
        inputs,
        [layer.weight for layer in linears],
        [layer.bias for layer in linears],
        lambda _: activations,
        branches_at_a_time(chunk_size, inputs, linears, recompute=recompute),
        recompute=recompute,
        evaluate=evaluate,
    )


def _is_finite(inputs: Tensor) -> bool:
    """Whether no input is infinite or not a number: sums of slopes times inputs would make of both what is not a number.

    Where numbers cannot be read, inside :mod:`torch.func` transforms and dispatch modes, they are taken to be finite.
    """
    is_plain = type(inputs) in (Tensor, nn.Parameter) and not inputs.is_meta
    if not is_plain or torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():
        return True
    return bool(inputs.detach().sum().isfinite())  # a sum that overflows costs speed only


def _channels_last(inputs: Tensor) -> Tensor:
    """The same in ``torch.channels_last``, which convolutions hand on: maxima are taken in vectors of channels then.

    Copied, since a single channel is in both formats, which convolutions take for the other one; and not by
    ``memory_format``, which :func:`torch.vmap` does not know.
    """
    return inputs.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


def _layer_by_layer(
    inputs: Tensor, linears: Sequence[StackedLayer], between: Sequence[Sequence[nn.Module]], num_convolutions: int
) -> Tensor:
    hidden = inputs
    for number, (layer, modules) in enumerate(zip(linears, between, strict=False)):
        if number == num_convolutions:
            hidden = _features_first(hidden, layer.weight)
        hidden = _in_a_row(modules, layer(hidden))
    last = linears[-1]
    outputs: Tensor = last(hidden if num_convolutions < len(between) else _features_first(hidden, last.weight))
    return outputs


def _features_first(hidden: Tensor, weight: Tensor) -> Tensor:  # shape: (num_branches, features, num_samples)
    num_branches, _, width = weight.shape
    _check_width(hidden, num_branches, width)
    return hidden.reshape(len(hidden), num_branches, width).permute(1, 2, 0)


def _in_a_row(modules: Sequence[nn.Module], hidden: Tensor) -> Tensor:
    for module in modules:
        hidden = module(hidden)
    return hidden


def _flattened(modules: Sequence[nn.Module], channels: int, width: int, hidden: Tensor) -> Tensor:
    """What stands behind the last convolution: nn.Flatten among it, so that samples become rows."""
    num_branches = hidden.shape[1] // channels
    hidden = _in_a_row(modules, hidden)
    _check_width(hidden, num_branches, width)
    return hidden


def _check_width(hidden: Tensor, num_branches: int, width: int) -> None:
    if hidden.shape[1] != num_branches * width:
        raise ShapeError(
            f"nn.Flatten gives {hidden.shape[1] // num_branches} features a branch for inputs of this size; expected {width}, "
            "as the nn.Linear behind it takes. Pool to a fixed size (nn.AdaptiveAvgPool2d), or give it that width."
        )


def _check_inputs(inputs: Tensor, kernels: Tensor) -> None:
    check_is_tensor(inputs)
    channels, *kernel_size = kernels.shape[2:]
    if inputs.ndim != 2 + len(kernel_size) or inputs.shape[1] != channels:
        sizes = ("length",) if len(kernel_size) == 1 else ("height", "width")
        raise ShapeError(
            f"The input has shape {tuple(inputs.shape)}; expected (num_samples, {channels}, {', '.join(sizes)}), as the first "
            "convolution takes."
        )


# What looks at shapes is one step of a graph of torch.fx.
torch.fx.wrap("_check_inputs")
torch.fx.wrap("_features_first")
