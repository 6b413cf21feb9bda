"""Branches to test with, and the slow reference: a Python loop over the branches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torch_strongdual.nn import GatedReLU, ParallelNet

Layers = Callable[[], list[nn.Module]]

BRANCHES: dict[str, Layers] = {
    "two_layers": lambda: [nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)],
    "no_bias": lambda: [nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False)],
    "one_hidden_unit": lambda: [nn.Linear(3, 1, bias=False), nn.ReLU(), nn.Linear(1, 1)],
    "leaky": lambda: [nn.Linear(3, 4), nn.LeakyReLU(0.2), nn.Linear(4, 2)],
    "linear": lambda: [nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)],
    "three_layers": lambda: [
        nn.Linear(3, 5, bias=False),
        nn.ReLU(),
        nn.Linear(5, 4, bias=False),
        nn.ReLU(),
        nn.Linear(4, 2, bias=False),
    ],
    "three_layers_biases": lambda: [nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.LeakyReLU(0.5), nn.Linear(4, 2)],
    "five_layers": lambda: [
        nn.Identity(),
        nn.Linear(3, 2),
        nn.ReLU(),
        nn.Linear(2, 3, bias=False),
        nn.ReLU(),
        nn.Linear(3, 4),
        nn.Identity(),
        nn.Linear(4, 2),
        nn.LeakyReLU(),
        nn.Linear(2, 1),
        nn.Identity(),
    ],
    "composed": lambda: [nn.Linear(3, 4), nn.LeakyReLU(0.5), nn.LeakyReLU(0.5), nn.Identity(), nn.Linear(4, 2)],
    "inplace": lambda: [
        nn.Linear(3, 4),
        nn.ReLU(inplace=True),
        nn.Linear(4, 3),
        nn.LeakyReLU(0.1, inplace=True),
        nn.Linear(3, 2),
    ],
    "gated": lambda: [nn.Linear(3, 4), GatedReLU(3), nn.Linear(4, 2)],
    "gated_deep": lambda: [nn.Linear(3, 4), GatedReLU(3), nn.Linear(4, 3), nn.ReLU(), GatedReLU(3), nn.Linear(3, 2)],
    "gated_twice": lambda: [nn.Linear(3, 4, bias=False), GatedReLU(3), GatedReLU(3), nn.Linear(4, 2, bias=False)],
}
HOMOGENEOUS = [name for name in BRANCHES if name not in ("three_layers_biases", "five_layers", "inplace", "gated_deep")]


def make_net(
    kind: str,
    num_branches: int = 3,
    *,
    chunk_size: int | None = None,
    recompute: bool = False,
    dtype: torch.dtype = torch.float64,
) -> ParallelNet:
    return ParallelNet(*BRANCHES[kind](), num_branches=num_branches, chunk_size=chunk_size, recompute=recompute, dtype=dtype)


def looped_outputs(net: ParallelNet, inputs: Tensor) -> Tensor:
    """Sum of the branches' outputs, one after the other."""
    total = sum((net.branch(k)(inputs) for k in range(net.num_branches)), torch.zeros(()))
    bias = net.output_bias
    return total if bias is None or net.num_branches == 1 else total + bias


def num_outputs(net: ParallelNet) -> int:
    return net.branch_spec.out_features
