"""The forward pass of stacked branches that begin with convolutions, without a loop over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from torch_strongdual.functional.stacked_outputs import hidden_layer, side_by_side, summed_layer

__all__ = ["ConvolutionGeometry", "convolved_layer", "convolved_outputs", "linear_outputs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvolutionGeometry:
    """Where the kernels of a convolution are laid, as :class:`torch.nn.Conv2d` names it.

    Args:
        stride: One number a dimension.
        padding: One number a dimension (zeros on both sides), or ``"same"`` or ``"valid"``.
        dilation: One number a dimension.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]

    def convolve(self, inputs: Tensor, kernels: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """Convolve ``inputs`` (num_samples, channels, length) or (num_samples, channels, height, width)."""
        apply = functional.conv1d if len(self.stride) == 1 else functional.conv2d
        outputs: Tensor = apply(inputs, kernels, bias, self.stride, self.padding, self.dilation, groups)
        return outputs

    def margins(self, kernel_size: Sequence[int]) -> list[int]:
        """Zeros in front and behind, last dimension first, as :func:`torch.nn.functional.pad` takes them."""
        margins: list[int] = []
        for index in reversed(range(len(kernel_size))):
            if self.padding == "same":
                total = self.dilation[index] * (kernel_size[index] - 1)
                margins += [total // 2, total - total // 2]
            else:
                one = 0 if isinstance(self.padding, str) else self.padding[index]
                margins += [one, one]
        return margins


def convolved_outputs(
    inputs: Tensor,  # shape: (num_samples, channels, *spatial)
    weights: Sequence[Tensor],  # convolutions (num_branches, out, in, *kernel_size), then linear (num_branches, out, in)
    biases: Sequence[Tensor | None],  # L - 1 of shape (num_branches, out), the last of shape (out_features,)
    activations: Sequence[Callable[[Tensor], Tensor]],  # L - 1 maps
    *,
    geometries: Sequence[ConvolutionGeometry],
) -> Tensor:  # shape: (num_samples, out_features)
    r"""Sum of the outputs of all branches, the first layers of which are convolutions.

    The first convolution shares its input, so it is one as wide as all branches together; later ones are grouped. What stands
    behind a convolution acts on ``(num_samples, num_branches * channels, *spatial)``, and behind the last one makes a
    matrix of it; the linear layers that follow are those of :func:`~torch_strongdual.functional.stacked_outputs`. A single
    branch makes the very calls that :class:`torch.nn.Sequential` makes.

    Args:
        inputs: What the first convolution is given.
        weights: Stacked weights, all layers.
        biases: ``None`` for a layer without; the last one is shared by the branches.
        activations: What stands behind each layer but the last: activations, pooling, and behind the last convolution the
            flattening to ``(num_samples, num_branches * features)``. Behind linear layers they act on
            ``(num_branches, hidden, num_samples)``.
        geometries: One for each convolution, at least one.

    Returns:
        Outputs in the dtype of the products: that of autocast where it is on.

    Example:
        >>> import torch
        >>> geometry = ConvolutionGeometry(stride=(1,), padding=(0,), dilation=(1,))
        >>> weights = [torch.ones(3, 1, 1, 2), torch.ones(3, 1, 3)]  # three branches, one output
        >>> signal = torch.tensor([[[1.0, 2.0, 3.0, -4.0]]])
        >>> convolved_outputs(signal, weights, [None, None], [lambda h: h.relu().flatten(1)], geometries=[geometry])
        tensor([[24.]])
    """
    num_branches, depth, hidden = weights[0].shape[0], len(geometries), inputs
    for number, geometry in enumerate(geometries):
        groups = 1 if number == 0 else num_branches
        hidden = activations[number](convolved_layer(hidden, weights[number], biases[number], geometry, groups))
    return linear_outputs(hidden, weights[depth:], biases[depth:], activations[depth:])


def convolved_layer(hidden: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvolutionGeometry, groups: int) -> Tensor:
    """One convolution a branch, on ``hidden`` of shape ``(num_samples, channels, *spatial)``.

    Args:
        hidden: What it is given: the inputs, or the channels of one branch after the other.
        weight: Stacked kernels.
        bias: Shape ``(num_branches, out)``, or ``None``.
        geometry: Where the kernels are laid.
        groups: One for inputs, which branches share; the number of branches for their channels.
    """
    return geometry.convolve(hidden, weight.flatten(0, 1), None if bias is None else bias.flatten(), groups)


def linear_outputs(
    hidden: Tensor,  # shape: (num_samples, num_branches * features)
    weights: Sequence[Tensor],  # (num_branches, out, in)
    biases: Sequence[Tensor | None],
    activations: Sequence[Callable[[Tensor], Tensor]],
) -> Tensor:  # shape: (num_samples, out_features)
    """Sum of the outputs of all branches from what stands behind their convolutions; see :func:`convolved_outputs`."""
    if len(weights) == 1:
        return functional.linear(hidden, side_by_side(weights[0]), biases[0])
    hidden = hidden.reshape(len(hidden), weights[0].shape[0], -1).permute(1, 2, 0)
    for weight, bias, activation in zip(weights[:-1], biases[:-1], activations, strict=True):
        hidden = activation(hidden_layer(hidden, weight, bias))
    return summed_layer(hidden, weights[-1], biases[-1])
