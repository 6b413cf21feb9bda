"""The forward pass of parallel networks, slowly: one branch after the other, one place of a kernel after the other.

Written from the definitions of the layers, in plain arithmetic that autograd can follow; imports nothing of the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import torch
from torch import Tensor

__all__ = ["Step", "flatten", "gate", "kernels", "linear", "parallel_outputs", "pool", "rectify"]

#: What a layer does to ``hidden``, given the branch's input and its parameters by name.
Step = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]


def parallel_outputs(steps: Sequence[Step], state: Mapping[str, Tensor], num_branches: int, inputs: Tensor) -> Tensor:
    """Sum of the branches' outputs.

    Args:
        steps: The layers of a branch.
        state: Parameters and gates stacked along the first dimension; ``"output_bias"`` is added once.
        num_branches: How many there are.
        inputs: What every branch is given, samples first.
    """
    total: Tensor | None = None
    for k in range(num_branches):
        own = {name: tensor[k] for name, tensor in state.items() if name != "output_bias"}
        hidden = inputs
        for step in steps:
            hidden = step(hidden, inputs, own)
        total = hidden if total is None else total + hidden
    assert total is not None
    return total + state["output_bias"] if "output_bias" in state else total


def linear(name: str) -> Step:
    """Rows times the transposed matrix ``name.weight``, plus ``name.bias`` if there is one."""

    def step(hidden: Tensor, _: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        outputs = (hidden[:, None, :] * state[f"{name}.weight"]).sum(-1)
        return outputs + state[f"{name}.bias"] if f"{name}.bias" in state else outputs

    return step


def rectify(slope: float = 0.0) -> Step:
    """Keep positive numbers, multiply the others by ``slope``."""
    return lambda hidden, _, __: torch.where(hidden > 0, hidden, slope * hidden)


def gate(name: str) -> Step:
    """Keep a row where the input's product with ``name.gate_vector`` is not negative, in float64."""

    def step(hidden: Tensor, inputs: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        signs = (inputs.detach().flatten(1).double() * state[f"{name}.gate_vector"].double()).sum(1) >= 0
        return hidden * signs[:, None]

    return step


def flatten(hidden: Tensor, _: Tensor, __: Mapping[str, Tensor]) -> Tensor:
    """Make a row of every sample."""
    return hidden.reshape(len(hidden), -1)


def kernels(name: str, *, stride: int = 1, padding: int = 0) -> Step:
    """A convolution: at every place, kernel times patch."""

    def step(hidden: Tensor, _: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        weight = state[f"{name}.weight"]  # shape: (out, in, *kernel_size)
        kernel_size = weight.shape[2:]
        padded = _zero_padded(hidden, padding)
        sizes = [(size - length) // stride + 1 for size, length in zip(padded.shape[2:], kernel_size, strict=True)]
        places = []
        for place in product(*map(range, sizes)):
            window = [slice(stride * at, stride * at + length) for at, length in zip(place, kernel_size, strict=True)]
            patch = padded[(slice(None), slice(None), *window)]
            places.append((patch[:, None] * weight).flatten(2).sum(-1))
        outputs = torch.stack(places, -1).reshape(*hidden.shape[:1], -1, *sizes)
        if f"{name}.bias" in state:
            outputs = outputs + state[f"{name}.bias"].reshape(-1, *[1] * len(sizes))
        return outputs

    return step


def pool(window: int | None, *, maximum: bool = False) -> Step:
    """Mean or maximum of windows side by side; of everything if ``window`` is ``None``."""

    def step(hidden: Tensor, _: Tensor, __: Mapping[str, Tensor]) -> Tensor:
        spatial = hidden.shape[2:]
        lengths = list(spatial) if window is None else [window] * len(spatial)
        sizes = [size // length for size, length in zip(spatial, lengths, strict=True)]
        places = []
        for place in product(*map(range, sizes)):
            cut = [slice(length * at, length * (at + 1)) for at, length in zip(place, lengths, strict=True)]
            patch = hidden[(slice(None), slice(None), *cut)].flatten(2)
            places.append(patch.amax(-1) if maximum else patch.sum(-1) / patch.shape[-1])
        return torch.stack(places, -1).reshape(*hidden.shape[:1], -1, *sizes)

    return step


def _zero_padded(hidden: Tensor, padding: int) -> Tensor:
    larger = hidden.new_zeros(*hidden.shape[:2], *[size + 2 * padding for size in hidden.shape[2:]])
    larger[(slice(None), slice(None), *[slice(padding, padding + size) for size in hidden.shape[2:]])] = hidden
    return larger
