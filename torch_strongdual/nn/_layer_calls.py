"""When the forward pass calls its layers one after the other, instead of computing with their weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.fx import Proxy

__all__ = ["are_layers_called", "has_hooks", "is_traced"]


def is_traced() -> bool:
    """Whether a choice by size would be the choice for all sizes, and a compiler lays out memory itself."""
    return bool(torch.compiler.is_compiling() or torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of ``module`` does more than its forward pass."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def are_layers_called(inputs: object, linears: Sequence[nn.Module], between: Sequence[Sequence[nn.Module]]) -> bool:
    """Whether layers have hooks, which only calls run, one call for all branches, or :mod:`torch.fx` records calls."""
    for layers in (linears, *between):  # every forward pass comes by: `any` takes twice as long
        for layer in layers:
            if has_hooks(layer):
                return True
    return isinstance(inputs, Proxy)
