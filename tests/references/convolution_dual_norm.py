"""References for the dual norm of convolutional branches: torch's own layers on explicit kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["kernel_value", "linear_dual_norm", "planar_dual_norm", "sampled_dual_norm"]


def kernel_values(
    kernels: Tensor,  # (m, size): the numbers of a kernel, the bias last if there is one
    make_layers: Callable[[], Sequence[nn.Module]],
    inputs: Tensor,
    duals: Tensor,  # (num_samples, c)
) -> NDArray[np.float64]:  # (m, c, num_locations)
    """``sum_i Lam_i (x) features_i`` for each unit kernel; its norm is what the best last layer of norm one makes of it.

    Args:
        kernels: One a channel of the first layer.
        make_layers: The layers up to and with nn.Flatten, the convolution first.
        inputs: What they are given.
        duals: Dual point.
    """
    layers = [layer.to(torch.float64) for layer in make_layers()]
    first = layers[0]
    assert isinstance(first, (nn.Conv1d, nn.Conv2d))
    size = math.prod(first.weight.shape[1:])
    first.weight = nn.Parameter(kernels[:, :size].reshape(-1, *first.weight.shape[1:]))
    if first.bias is not None:
        first.bias = nn.Parameter(kernels[:, size].clone())
    with torch.no_grad():
        features = nn.Sequential(*layers)(inputs).reshape(len(inputs), len(kernels), -1)
    values: NDArray[np.float64] = np.einsum("nmq,nc->mcq", features.numpy(), duals.numpy())
    return values


def kernel_value(kernel: Tensor, make_layers: Callable[[], Sequence[nn.Module]], inputs: Tensor, duals: Tensor) -> float:
    """Value of one kernel."""
    return float(np.linalg.norm(kernel_values(kernel[None], make_layers, inputs, duals)))


def planar_dual_norm(
    make_layers: Callable[[], Sequence[nn.Module]], inputs: Tensor, duals: Tensor, number: int = 4000
) -> tuple[float, float]:
    """Largest value over a fine grid of kernels of two numbers, and an upper bound on the dual norm from its mesh."""
    step = 2 * math.pi / number
    angles = step * np.arange(number)
    kernels = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    values = kernel_values(kernels, make_layers, inputs, duals)
    largest = float(np.linalg.norm(values.reshape(number, -1), axis=1).max())
    return largest, largest + step / 2 * _lipschitz(make_layers, inputs, duals)


def linear_dual_norm(make_layers: Callable[[], Sequence[nn.Module]], inputs: Tensor, duals: Tensor, size: int) -> float:
    """Spectral norm of the matrix of the map from kernels of ``size`` numbers to their values; without activation."""
    columns = kernel_values(torch.eye(size, dtype=torch.float64), make_layers, inputs, duals)
    return float(np.linalg.norm(columns.reshape(size, -1), 2))


def sampled_dual_norm(
    make_layers: Callable[[], Sequence[nn.Module]], inputs: Tensor, duals: Tensor, size: int, number: int, seed: int = 0
) -> float:
    """Largest value over random unit kernels of ``size`` numbers: a lower bound."""
    kernels = np.random.default_rng(seed).standard_normal((number, size))
    kernels /= np.linalg.norm(kernels, axis=1, keepdims=True)
    values = kernel_values(torch.from_numpy(kernels), make_layers, inputs, duals)
    return float(np.linalg.norm(values.reshape(number, -1), axis=1).max())


def _lipschitz(make_layers: Callable[[], Sequence[nn.Module]], inputs: Tensor, duals: Tensor) -> float:
    """Bound on how fast the value changes with the kernel: that of each sample, by its norm."""
    first = make_layers()[0]
    assert isinstance(first, (nn.Conv1d, nn.Conv2d))
    locations = nn.Sequential(*make_layers()).to(torch.float64)(inputs[:1]).numel()
    norms = torch.linalg.vector_norm(inputs.flatten(1), dim=1) + (0.0 if first.bias is None else 1.0)
    return float(math.sqrt(locations) * (norms * torch.linalg.vector_norm(duals, dim=1)).sum())
