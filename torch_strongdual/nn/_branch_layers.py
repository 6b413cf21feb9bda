"""Reads the layers of a branch: what is supported, in which order, with which widths."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from torch_strongdual.errors import ShapeError, UnsupportedModelError
from torch_strongdual.nn._convolutional_layers import check_convolutional_layers, is_convolutional
from torch_strongdual.nn._layer_checks import NamedLayers, check_flatten, check_layer, check_not_shared, layer_label
from torch_strongdual.nn._stacked_convolution import CONVOLUTIONS
from torch_strongdual.nn.gated_relu import GatedReLU

__all__ = ["BranchLayers"]

_SUPPORTED = (
    "nn.Linear, nn.ReLU, nn.LeakyReLU, nn.Identity, GatedReLU, and nn.Flatten before the first nn.Linear; with nn.Conv1d or "
    "nn.Conv2d in front pooling, too"
)
# Exact types: a subclass may compute something else.
_ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.LeakyReLU, nn.Identity, GatedReLU)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BranchLayers:
    """The checked layers of a branch.

    Args:
        modules: Name and layer, in order.
        linear_names: Names of the linear layers, convolutions among them, two or more.
        activation_names: For each gap between two linear layers, the names of what stands there, possibly nothing.
        flatten: Whether the branch begins with Flatten.
        num_convolutions: How many of the linear layers, the first ones, are convolutions.
    """

    modules: dict[str, nn.Module]
    linear_names: tuple[str, ...]
    activation_names: tuple[tuple[str, ...], ...]
    flatten: bool
    num_convolutions: int

    @classmethod
    def parse(cls, modules: Iterable[tuple[str, nn.Module]]) -> BranchLayers:
        """Check and sort the layers.

        Raises:
            UnsupportedModelError: If a layer, or its place, is not supported.
            ShapeError: If widths do not fit.
        """
        named = list(modules)
        if is_convolutional(named):
            check_convolutional_layers(named)
        else:
            _check_dense_layers(named)
        kinds = [type(module) for _, module in named]
        linear_at = [position for position, kind in enumerate(kinds) if kind in (nn.Linear, *CONVOLUTIONS)]
        return cls(
            modules=dict(named),
            linear_names=tuple(named[i][0] for i in linear_at),
            activation_names=tuple(
                tuple(name for name, _ in named[start + 1 : stop]) for start, stop in itertools.pairwise(linear_at)
            ),
            flatten=nn.Flatten in kinds[: linear_at[0]],
            num_convolutions=sum(kind in CONVOLUTIONS for kind in kinds),
        )


def _check_dense_layers(named: NamedLayers) -> None:
    for position, (name, module) in enumerate(named):
        check_layer(position, name, module, (nn.Linear, nn.Flatten, *_ACTIVATIONS), _SUPPORTED)
    linear_at = [i for i, (_, module) in enumerate(named) if type(module) is nn.Linear]
    if len(linear_at) < 2:
        raise UnsupportedModelError(
            f"The branch has {len(linear_at)} nn.Linear layers; expected two or more: a hidden layer and an output layer."
        )
    _check_order(named, linear_at[0], linear_at[-1])
    check_not_shared(named)
    _check_widths(named)


def _check_order(named: NamedLayers, first: int, last: int) -> None:
    for position, (name, module) in enumerate(named):
        label = layer_label(position, name, module)
        if type(module) is nn.Flatten:
            if position > first or any(type(other) is nn.Flatten for _, other in named[:position]):
                raise UnsupportedModelError(f"The {label} is supported only once, and only before the first nn.Linear.")
            check_flatten(label, module)
        elif type(module) is not nn.Identity and type(module) is not nn.Linear:
            if position < first:
                raise UnsupportedModelError(f"The {label} stands before the first nn.Linear. Apply it to the data instead.")
            if position > last:
                raise UnsupportedModelError(
                    f"The {label} stands behind the last nn.Linear. Outputs of branches are summed, so nothing but nn.Identity "
                    "may follow; put it into the loss, or behind the network."
                )


def _check_widths(named: NamedLayers) -> None:
    linears = [(i, name, module) for i, (name, module) in enumerate(named) if isinstance(module, nn.Linear)]
    branch_in_features = linears[0][2].in_features
    for position, name, module in linears:
        if module.in_features < 1 or module.out_features < 1:
            raise ShapeError(f"The {layer_label(position, name, module)} has a width of zero; expected widths >= 1.")
    for (before, _, previous), (position, name, module) in itertools.pairwise(linears):
        if previous.out_features != module.in_features:
            raise ShapeError(
                f"The {layer_label(position, name, module)} takes {module.in_features} features, but layer {before} before it "
                f"gives {previous.out_features}. Make the two equal."
            )
    for position, (name, layer) in enumerate(named):
        if isinstance(layer, GatedReLU) and layer.in_features != branch_in_features:
            raise ShapeError(
                f"The {layer_label(position, name, layer)} has gates on {layer.in_features} features; expected "
                f"{branch_in_features}, the input width of the branch (gates look at the branch input, not at hidden units)."
            )
