"""Checks of a single layer, and of layers against each other, that hold for branches of every kind."""

from __future__ import annotations

import math

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from torch_strongdual.errors import UnsupportedModelError

__all__ = ["NamedLayers", "check_flatten", "check_layer", "check_not_shared", "layer_label"]

NamedLayers = list[tuple[str, nn.Module]]


def layer_label(position: int, name: str, module: object) -> str:
    """The words by which messages call a layer."""
    shown = repr(module) if isinstance(module, nn.Module) and not list(module.children()) else type(module).__name__
    return f"layer {position} ({name!r}), {shown},"


def check_layer(position: int, name: str, module: object, allowed: tuple[type[nn.Module], ...], supported: str) -> None:
    """Refuse a layer that is not exactly of one of the types ``allowed``, which ``supported`` says in words.

    Raises:
        UnsupportedModelError: Naming the layer, and what would do.
    """
    label = layer_label(position, name, module)
    if isinstance(module, LazyModuleMixin):
        raise UnsupportedModelError(
            f"The {label} is lazy: its widths are not known yet. Run one batch through it first, or use nn.Linear."
        )
    if isinstance(module, (nn.Sequential, list, tuple)):
        raise UnsupportedModelError(
            f"The {label} is nested. Pass its layers one by one (`*layers`), or use ParallelNet.from_sequential."
        )
    if type(module) not in allowed:
        hint = " Subclasses may compute something else, so they are not accepted." if isinstance(module, allowed) else ""
        raise UnsupportedModelError(f"The {label} is not supported in a branch. Supported: {supported}.{hint}")
    if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
        _check_weighted(label, module)
    if isinstance(module, nn.LeakyReLU) and not (math.isfinite(module.negative_slope) and 0 <= module.negative_slope <= 1):
        raise UnsupportedModelError(f"The {label} has a slope outside [0, 1], for which there is no dual norm bound here.")


def _check_weighted(label: str, module: nn.Linear | nn.Conv1d | nn.Conv2d) -> None:
    if not module.weight.is_floating_point():
        raise UnsupportedModelError(f"The {label} has dtype {module.weight.dtype}; expected a real floating point dtype.")
    if module._forward_hooks or module._forward_pre_hooks:
        raise UnsupportedModelError(
            f"The {label} has forward hooks (weight_norm and pruning add some), which the stacked layer would not run. Remove "
            "them, and add them to the finished network."
        )


def check_flatten(label: str, module: nn.Flatten) -> None:
    """Refuse what does not make one row of every sample."""
    if (module.start_dim, module.end_dim) != (1, -1):
        raise UnsupportedModelError(
            f"The {label} keeps other dimensions than the first one. Supported: nn.Flatten(start_dim=1, end_dim=-1)."
        )


def check_not_shared(named: NamedLayers) -> None:
    """Refuse layers with tied weights."""
    owners: dict[int, int] = {}
    for position, (name, module) in enumerate(named):
        for tensor in (*module.parameters(), *module.buffers()):
            other = owners.setdefault(id(tensor), position)
            if other != position:
                raise UnsupportedModelError(
                    f"The {layer_label(position, name, module)} shares its weights with layer {other} ({named[other][0]!r}). "
                    "Branches with tied layers are not supported: give each layer its own."
                )
