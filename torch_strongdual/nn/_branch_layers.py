"""Reads the layers of a branch: what is supported, in which order, with which widths."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from torch_strongdual.errors import ShapeError, UnsupportedModelError
from torch_strongdual.nn.gated_relu import GatedReLU

__all__ = ["BranchLayers"]

_SUPPORTED = "nn.Linear, nn.ReLU, nn.LeakyReLU, nn.Identity, GatedReLU, and nn.Flatten before the first nn.Linear"
# Exact types: a subclass may compute something else.
_ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.LeakyReLU, nn.Identity, GatedReLU)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BranchLayers:
    """The checked layers of a branch.

    Args:
        modules: Name and layer, in order.
        linear_names: Names of the linear layers, two or more.
        activation_names: For each gap between two linear layers, the names of what stands there, possibly nothing.
        flatten: Whether the branch begins with Flatten.
    """

    modules: dict[str, nn.Module]
    linear_names: tuple[str, ...]
    activation_names: tuple[tuple[str, ...], ...]
    flatten: bool

    @classmethod
    def parse(cls, modules: Iterable[tuple[str, nn.Module]]) -> BranchLayers:
        """Check and sort the layers.

        Raises:
            UnsupportedModelError: If a layer, or its place, is not supported.
            ShapeError: If widths do not fit.
        """
        named = list(modules)
        for position, (name, module) in enumerate(named):
            _check_type(position, name, module)
        linear_at = [i for i, (_, module) in enumerate(named) if type(module) is nn.Linear]
        if len(linear_at) < 2:
            raise UnsupportedModelError(
                f"The branch has {len(linear_at)} nn.Linear layers; expected two or more: a hidden layer and an output layer."
            )
        _check_order(named, linear_at[0], linear_at[-1])
        _check_not_shared(named)
        _check_widths(named)
        return cls(
            modules=dict(named),
            linear_names=tuple(named[i][0] for i in linear_at),
            activation_names=tuple(
                tuple(name for name, _ in named[start + 1 : stop]) for start, stop in itertools.pairwise(linear_at)
            ),
            flatten=any(type(module) is nn.Flatten for _, module in named),
        )


def _label(position: int, name: str, module: object) -> str:
    shown = repr(module) if isinstance(module, nn.Module) and not list(module.children()) else type(module).__name__
    return f"layer {position} ({name!r}), {shown},"


def _check_type(position: int, name: str, module: object) -> None:
    label = _label(position, name, module)
    if isinstance(module, LazyModuleMixin):
        raise UnsupportedModelError(
            f"The {label} is lazy: its widths are not known yet. Run one batch through it first, or use nn.Linear."
        )
    if isinstance(module, nn.Sequential):
        raise UnsupportedModelError(
            f"The {label} is nested. Pass its layers one by one (`*layers`), or use ParallelNet.from_sequential."
        )
    if type(module) not in (nn.Linear, nn.Flatten, *_ACTIVATIONS):
        hint = " Subclasses may compute something else, so they are not accepted." if isinstance(module, nn.Linear) else ""
        raise UnsupportedModelError(f"The {label} is not supported in a branch. Supported: {_SUPPORTED}.{hint}")
    if isinstance(module, nn.Linear):
        _check_linear(label, module)
    if isinstance(module, nn.LeakyReLU) and not (math.isfinite(module.negative_slope) and 0 <= module.negative_slope <= 1):
        raise UnsupportedModelError(f"The {label} has a slope outside [0, 1], for which there is no dual norm bound here.")


def _check_linear(label: str, module: nn.Linear) -> None:
    if not module.weight.is_floating_point():
        raise UnsupportedModelError(f"The {label} has dtype {module.weight.dtype}; expected a real floating point dtype.")
    if module._forward_hooks or module._forward_pre_hooks:
        raise UnsupportedModelError(
            f"The {label} has forward hooks (weight_norm and pruning add some), which the stacked layer would not run. Remove "
            "them, and add them to the finished network."
        )


def _check_order(named: list[tuple[str, nn.Module]], first: int, last: int) -> None:
    for position, (name, module) in enumerate(named):
        label = _label(position, name, module)
        if type(module) is nn.Flatten:
            if position > first or any(type(other) is nn.Flatten for _, other in named[:position]):
                raise UnsupportedModelError(f"The {label} is supported only once, and only before the first nn.Linear.")
            if (module.start_dim, module.end_dim) != (1, -1):
                raise UnsupportedModelError(
                    f"The {label} keeps other dimensions than the first one. Supported: nn.Flatten(start_dim=1, end_dim=-1)."
                )
        elif type(module) is not nn.Identity and type(module) is not nn.Linear:
            if position < first:
                raise UnsupportedModelError(f"The {label} stands before the first nn.Linear. Apply it to the data instead.")
            if position > last:
                raise UnsupportedModelError(
                    f"The {label} stands behind the last nn.Linear. Outputs of branches are summed, so nothing but nn.Identity "
                    "may follow; put it into the loss, or behind the network."
                )


def _check_not_shared(named: list[tuple[str, nn.Module]]) -> None:
    owners: dict[int, int] = {}
    for position, (name, module) in enumerate(named):
        for tensor in (*module.parameters(), *module.buffers()):
            other = owners.setdefault(id(tensor), position)
            if other != position:
                raise UnsupportedModelError(
                    f"The {_label(position, name, module)} shares its weights with layer {other} ({named[other][0]!r}). "
                    "Branches with tied layers are not supported: give each layer its own."
                )


def _check_widths(named: list[tuple[str, nn.Module]]) -> None:
    linears = [(i, name, module) for i, (name, module) in enumerate(named) if isinstance(module, nn.Linear)]
    branch_in_features = linears[0][2].in_features
    for position, name, module in linears:
        if module.in_features < 1 or module.out_features < 1:
            raise ShapeError(f"The {_label(position, name, module)} has a width of zero; expected widths >= 1.")
    for (before, _, previous), (position, name, module) in itertools.pairwise(linears):
        if previous.out_features != module.in_features:
            raise ShapeError(
                f"The {_label(position, name, module)} takes {module.in_features} features, but layer {before} before it gives "
                f"{previous.out_features}. Make the two equal."
            )
    for position, (name, layer) in enumerate(named):
        if isinstance(layer, GatedReLU) and layer.in_features != branch_in_features:
            raise ShapeError(
                f"The {_label(position, name, layer)} has gates on {layer.in_features} features; expected "
                f"{branch_in_features}, the input width of the branch (gates look at the branch input, not at hidden units)."
            )
