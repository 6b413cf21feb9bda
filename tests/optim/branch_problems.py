"""Small problems on stacked weights that the optimizer tests share."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_strongdual.optim import PathAdamW, PathSGD

from .._typed_torch import backward

MakeOptimizer = Callable[..., PathSGD | PathAdamW]

MAKERS: list[MakeOptimizer] = [PathSGD, PathAdamW]


def random_layers(
    num_layers: int = 3, num_branches: int = 4, *, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 0.7
) -> list[Tensor]:
    """Weights ``(num_branches, out, in)`` of branches from 3 inputs to 2 outputs."""
    generator = torch.Generator().manual_seed(seed)
    widths = [3, *[3] * (num_layers - 1), 2]
    return [
        (scale * torch.randn(num_branches, fan_out, fan_in, generator=generator, dtype=torch.float64))
        .to(dtype)
        .requires_grad_()
        for fan_in, fan_out in itertools.pairwise(widths)
    ]


def random_bias(num_branches: int = 4) -> Tensor:
    return torch.randn(num_branches, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64).requires_grad_()


def stacked(layers: list[Tensor], bias: Tensor) -> list[Tensor]:
    """Copies of the layers, the bias as the last column of the first."""
    return [torch.cat([layers[0], bias[:, :, None]], dim=2).detach(), *(layer.detach().clone() for layer in layers[1:])]


def branch_group(layers: list[Tensor], **options: Any) -> dict[str, Any]:
    return {"params": layers, "layer_index": tuple(range(len(layers))), **options}


def relu_outputs(inputs: Tensor, layers: list[Tensor], bias: Tensor | None = None) -> Tensor:
    hidden = torch.einsum("ni,koi->kno", inputs, layers[0])
    if bias is not None:
        hidden = hidden + bias[:, None]
    for layer in layers[1:]:
        hidden = hidden.relu() @ layer.transpose(1, 2)
    return hidden.sum(dim=0)


def relu_loss(layers: list[Tensor], bias: Tensor | None = None) -> Tensor:
    """Squared loss of a ReLU net on fixed random data."""
    generator = torch.Generator().manual_seed(5)
    inputs, targets = (torch.randn(12, width, generator=generator, dtype=torch.float64) for width in (3, 2))
    dtype = layers[0].dtype
    return 0.5 * (relu_outputs(inputs.to(dtype), layers, bias) - targets.to(dtype)).square().sum() / 12


def train(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], num_steps: int) -> None:
    for _ in range(num_steps):
        optimizer.zero_grad()
        backward(loss())
        optimizer.step()
