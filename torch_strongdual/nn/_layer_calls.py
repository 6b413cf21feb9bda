"""When the forward pass calls its layers one after the other, instead of computing with their weights."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.fx import Proxy

__all__ = ["are_layers_called", "has_hooks"]


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of ``module`` does more than its forward pass."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(map(bool, hooks))


def are_layers_called(inputs: object, layers: Iterable[nn.Module]) -> bool:
    """Whether layers have hooks, which only calls run, or :mod:`torch.fx` records which layers are called."""
    return isinstance(inputs, Proxy) or any(has_hooks(layer) for layer in layers)
