"""The one activation that several modules in a row amount to."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from torch_strongdual.nn._stacked_gated_relu import StackedGatedReLU
from torch_strongdual.nn.branch_spec import BranchActivation

__all__ = ["composed_activation"]


def composed_activation(modules: Iterable[nn.Module]) -> BranchActivation:
    """Multiply the slopes and collect copies of the gates of supported modules."""
    slope, gates = 1.0, []
    for module in modules:
        if isinstance(module, StackedGatedReLU):
            gates.append(module.gate_vector.detach().clone())
        elif isinstance(module, nn.ReLU):
            slope = 0.0
        elif isinstance(module, nn.LeakyReLU):
            slope *= module.negative_slope
    return BranchActivation(negative_slope=slope, gate_vectors=tuple(gates))
