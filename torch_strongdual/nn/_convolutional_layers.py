"""Reads the layers of a branch that begins with convolutions: what is supported, in which order, with which widths."""

from __future__ import annotations

from torch import nn

from torch_strongdual.errors import ShapeError, UnsupportedModelError
from torch_strongdual.nn._layer_checks import NamedLayers, check_flatten, check_layer, check_not_shared, layer_label
from torch_strongdual.nn._stacked_convolution import CONVOLUTIONS

__all__ = ["AVERAGE_POOLS", "POOLS", "check_convolutional_layers", "is_convolutional"]

#: Linear maps of what they are given.
AVERAGE_POOLS: tuple[type[nn.Module], ...] = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
_MAX_POOLS: tuple[type[nn.Module], ...] = (nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
POOLS = (*AVERAGE_POOLS, *_MAX_POOLS)

_ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.LeakyReLU, nn.Identity)
_SUPPORTED = (
    "nn.Conv1d or nn.Conv2d, nn.ReLU, nn.LeakyReLU, nn.Identity, nn.AvgPool, nn.MaxPool, nn.AdaptiveAvgPool and "
    "nn.AdaptiveMaxPool of the same dimension, one nn.Flatten behind the convolutions, and nn.Linear behind it"
)


def is_convolutional(named: NamedLayers) -> bool:
    """Whether there is any convolution among the layers."""
    return any(isinstance(module, CONVOLUTIONS) for _, module in named)


def check_convolutional_layers(named: NamedLayers) -> None:
    """Check a branch ``convolution, ..., nn.Flatten, nn.Linear, ...``.

    Raises:
        UnsupportedModelError: If a layer, or its place, is not supported.
        ShapeError: If channels, dimensions or widths do not fit.
    """
    allowed = (*CONVOLUTIONS, *POOLS, *_ACTIVATIONS, nn.Flatten, nn.Linear)
    for position, (name, module) in enumerate(named):
        check_layer(position, name, module, allowed, _SUPPORTED)
    kinds = [type(module) for _, module in named]
    first = next(position for position, kind in enumerate(kinds) if kind in CONVOLUTIONS)
    flatten = kinds.index(nn.Flatten) if nn.Flatten in kinds else len(kinds)
    weighted = [position for position, kind in enumerate(kinds) if kind in (*CONVOLUTIONS, nn.Linear)]
    for position, (name, module) in enumerate(named):
        label = layer_label(position, name, module)
        if isinstance(module, CONVOLUTIONS):
            _check_convolution(label, module)
        if isinstance(module, POOLS):
            _check_pool(label, module)
        if position < first and type(module) is not nn.Identity:
            raise UnsupportedModelError(f"The {label} stands before the first convolution. Apply it to the data instead.")
        if type(module) is nn.Flatten:
            check_flatten(label, module)
            if position != flatten:
                raise UnsupportedModelError(f"The {label} is supported only once, behind the last convolution.")
        elif position > flatten and type(module) in (*CONVOLUTIONS, *POOLS):
            raise UnsupportedModelError(f"The {label} stands behind nn.Flatten, where there are no images or signals any more.")
        elif position < flatten and type(module) is nn.Linear:
            raise UnsupportedModelError(f"The {label} stands behind a convolution. Put nn.Flatten() between the two.")
        if position > weighted[-1] and type(module) is not nn.Identity:
            raise UnsupportedModelError(
                f"The {label} stands behind the last layer with weights. A convolutional branch ends with nn.Flatten and "
                "nn.Linear: outputs of branches are summed, so nothing but nn.Identity may follow."
            )
    if kinds[weighted[-1]] is not nn.Linear:
        label = layer_label(weighted[-1], *named[weighted[-1]])
        raise UnsupportedModelError(
            f"The {label} is the last layer with weights; expected nn.Flatten and an nn.Linear behind it."
        )
    check_not_shared(named)
    _check_widths(named)


def _check_convolution(label: str, layer: nn.Conv1d | nn.Conv2d) -> None:
    if layer.groups != 1:
        raise UnsupportedModelError(
            f"The {label} has groups={layer.groups}. Supported: groups=1; branches are groups themselves."
        )
    if layer.padding_mode != "zeros":
        raise UnsupportedModelError(
            f"The {label} has padding_mode={layer.padding_mode!r}. Supported: 'zeros'; pad the data instead."
        )


def _check_pool(label: str, layer: nn.Module) -> None:
    if getattr(layer, "return_indices", False):
        raise UnsupportedModelError(f"The {label} returns indices, too. Supported: return_indices=False.")


def _check_widths(named: NamedLayers) -> None:
    """Channels chain, dimensions agree, and the first linear layer takes a whole number of locations."""
    dimension, channels, before, is_flat = 0, 0, 0, False
    for position, (name, module) in enumerate(named):
        label = layer_label(position, name, module)
        own = int(type(module).__name__[-2]) if isinstance(module, (*CONVOLUTIONS, *POOLS)) else dimension
        if dimension and own != dimension:
            raise ShapeError(f"The {label} is for {own} dimensions, but the first convolution is for {dimension}.")
        if isinstance(module, CONVOLUTIONS):
            if channels and module.in_channels != channels:
                raise ShapeError(f"The {label} takes {module.in_channels} channels, but layer {before} gives {channels}.")
            dimension, channels, before = own, module.out_channels, position
        elif isinstance(module, nn.Linear):
            fits = module.in_features == channels if is_flat else module.in_features % channels == 0
            if not fits or min(module.in_features, module.out_features) < 1:
                wanted = f"{channels}" if is_flat else f"a multiple of the {channels} channels"
                raise ShapeError(f"The {label} takes {module.in_features} features, but layer {before} gives {wanted}.")
            channels, before, is_flat = module.out_features, position, True
