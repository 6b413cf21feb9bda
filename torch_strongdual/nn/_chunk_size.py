"""How many branches are evaluated at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from torch_strongdual.errors import InvalidInputError
from torch_strongdual.nn._layer_calls import is_traced
from torch_strongdual.nn._stacked_convolution import StackedConvolution
from torch_strongdual.nn._stacked_layer import StackedLayer

__all__ = ["ChunkSize", "branches_at_a_time", "check_chunk_size", "check_count"]

ChunkSize = int | Literal["auto"] | None

# The allocator of glibc hands large blocks back to the system, so that each pass pays for fresh pages again, and what a pass
# leaves in the cache the next one finds there. Measured on a CPU: activations of 8 MiB and more take 0.5 to 1.02 times as long
# in chunks of 4 MiB, several layers and convolutions gaining most; smaller ones gain nothing.
_LARGE_BYTES = 6 * 2**20
_CHUNK_BYTES = 4 * 2**20
_ACCELERATOR_CHUNK_BYTES = 128 * 2**20  # a launch has to be worth its overhead


def check_count(name: str, value: object) -> None:
    """Raise unless ``value`` is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InvalidInputError(f"`{name}` is {value!r}; expected an integer >= 1.")


def check_chunk_size(value: object) -> None:
    """Raise unless ``value`` is ``"auto"``, ``None`` or a positive integer."""
    if value is None or value == "auto":
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInputError(f"`chunk_size` is {value!r}; expected 'auto', None (all at once) or an integer >= 1.")


def branches_at_a_time(
    chunk_size: ChunkSize,
    inputs: Tensor,  # shape: (num_samples, in_features), or (num_samples, channels, *spatial)
    layers: Sequence[StackedLayer],
    *,
    recompute: bool,
) -> int | None:
    """The number of branches to evaluate together, ``None`` for all.

    ``"auto"``: all at once while the largest activation takes at most 6 MiB, else as many as take 4 MiB. On accelerators all
    at once, unless recomputation makes chunks save memory. Under :func:`torch.compile`, :func:`torch.export.export` and
    :func:`torch.jit.trace` all at once: one graph for every number of samples, and the compiler places what it keeps.

    Args:
        chunk_size: As the network was told.
        inputs: What the first layer is given.
        layers: All layers with parameters.
        recompute: Whether activations are dropped and recomputed.
    """
    if chunk_size != "auto":
        return chunk_size
    if torch.compiler.is_compiling() or inputs.is_meta or (inputs.device.type != "cpu" and not recompute):
        return None
    weight = layers[0].weight
    branch_bytes = _activation_numbers(inputs, layers) * weight.element_size()
    if branch_bytes * weight.shape[0] <= _LARGE_BYTES or is_traced():
        return None
    budget = _CHUNK_BYTES if inputs.device.type == "cpu" else _ACCELERATOR_CHUNK_BYTES
    return max(1, budget // branch_bytes)


def _activation_numbers(inputs: Tensor, layers: Sequence[StackedLayer]) -> int:
    """Size of the largest hidden layer of a branch; of convolutions the first counts, later ones see smaller images mostly."""
    first = layers[0]
    if not isinstance(first, StackedConvolution):
        return inputs.shape[0] * max([layer.weight.shape[1] for layer in layers[:-1]])
    places = math.prod(math.ceil(size / stride) for size, stride in zip(inputs.shape[2:], first.geometry.stride, strict=True))
    return inputs.shape[0] * places * first.fan_out
