"""Convolution, (leaky) ReLU and global average pooling in one, without the activations in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from torch_strongdual.functional.convolved_outputs import ConvolutionGeometry, linear_outputs

__all__ = ["averaged_convolution", "averaged_outputs"]

# Pre-activations at a time: a megabyte in float32, which stays in the cache between the products.
_NUMBERS = 2**18


def averaged_convolution(
    inputs: Tensor,  # shape: (num_samples, in_channels, *spatial)
    kernels: Tensor,  # shape: (channels, in_channels, *kernel_size)
    bias: Tensor | None,  # shape: (channels,)
    *,
    negative_slope: float,
    geometry: ConvolutionGeometry,
) -> Tensor:  # shape: (num_samples, channels)
    r"""Mean over all positions of the activated convolution, for kernels of few numbers and many channels.

    With the patches :math:`z_{ip}` of sample i, a kernel :math:`w` and the slope :math:`s(t)` of the activation at t,
    positively homogeneous, the mean is :math:`\frac{1}{P} \sum_p s(w^T z_{ip}) w^T z_{ip} = \frac{1}{P} w^T S_i(w)` where
    :math:`S_i(w) = \sum_p s(w^T z_{ip}) z_{ip}`. Slopes are constant where there is a derivative, so that autograd gets all
    of them, of every order, from this product with slopes that it sees as numbers. It keeps :math:`S_i` for the backward pass,
    as many numbers as a patch has for each channel, instead of the activations at all positions, which are computed for a few
    samples at a time and stay in the cache.

    Args:
        inputs: Images or signals.
        kernels: Of all branches, one after the other.
        bias: One number a channel, or ``None``.
        negative_slope: Slope of the activation left of zero, from 0, which is ReLU, to 1.
        geometry: Where the kernels are laid.

    Returns:
        What ``AdaptiveAvgPool(1)`` and ``Flatten`` would give, up to rounding; not a number, neither infinite nor zero, where
        inputs are infinite, so that a network leaves those to torch's convolution.

    Example:
        >>> geometry = ConvolutionGeometry(stride=(1,), padding=(0,), dilation=(1,))
        >>> signal = torch.tensor([[[1.0, 2.0, -5.0]]])
        >>> averaged_convolution(signal, torch.ones(1, 1, 2), None, negative_slope=0.0, geometry=geometry)
        tensor([[1.5000]])
    """
    patches = _patches(inputs, kernels, geometry)
    weights = kernels.flatten(1)
    if bias is not None:
        patches = functional.pad(patches, (0, 0, 0, 1), value=1.0)
        weights = torch.cat([weights, bias.unsqueeze(1)], dim=1)
    sums = _sloped_sums(patches, weights.detach(), negative_slope)
    return (sums * weights.T).sum(dim=1) / patches.shape[2]


def averaged_outputs(
    inputs: Tensor,  # shape: (num_samples, in_channels, *spatial)
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[Callable[[Tensor], Tensor]],
    *,
    negative_slope: float,
    geometry: ConvolutionGeometry,
) -> Tensor:  # shape: (num_samples, out_features)
    """Sum of the outputs of branches with one convolution, a (leaky) ReLU, global average pooling and linear layers.

    What :func:`~torch_strongdual.functional.convolved_outputs.convolved_outputs` gives, up to rounding.

    Args:
        inputs: Images or signals.
        weights: Stacked weights, all layers.
        biases: ``None`` for a layer without; the last one is shared by the branches.
        activations: One for each layer but the last; the first one is not called.
        negative_slope: See :func:`averaged_convolution`.
        geometry: See :func:`averaged_convolution`.
    """
    kernels, bias = weights[0].flatten(0, 1), biases[0]
    hidden = averaged_convolution(
        inputs, kernels, None if bias is None else bias.flatten(), negative_slope=negative_slope, geometry=geometry
    )
    return linear_outputs(hidden, weights[1:], biases[1:], activations[1:])


def _patches(inputs: Tensor, kernels: Tensor, geometry: ConvolutionGeometry) -> Tensor:  # (num_samples, size, positions)
    padded = functional.pad(inputs, geometry.margins(kernels.shape[2:]))
    missing = (1,) * (4 - inputs.ndim)  # signals are images of height one
    return functional.unfold(
        padded.unsqueeze(2) if missing else padded,
        (*missing, *kernels.shape[2:]),
        dilation=(*missing, *geometry.dilation),
        stride=(*missing, *geometry.stride),
    )


def _sloped_sums(patches: Tensor, weights: Tensor, negative_slope: float) -> Tensor:  # (num_samples, size, channels)
    """Sums of the patches, each times the slope of the activation at its product with the weights."""
    channels, positions = weights.shape[0], max(1, patches.shape[2])
    samples_at_a_time = max(1, _NUMBERS // (channels * positions))
    channels_at_a_time = max(1, _NUMBERS // positions)
    blocks = []
    for block in torch.split(patches, samples_at_a_time):
        sums = []
        for rows in torch.split(weights, channels_at_a_time):
            # signs cut off at the slope left of zero are slopes, faster than numbers from a comparison
            slopes = torch.bmm(rows.expand(len(block), -1, -1), block.detach()).sign_().clamp(min=negative_slope)
            sums.append(torch.bmm(block, slopes.transpose(1, 2)))
        blocks.append(sums[0] if len(sums) == 1 else torch.cat(sums, dim=2))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)
