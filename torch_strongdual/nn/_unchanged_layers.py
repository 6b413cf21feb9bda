"""Whether the layers of a network are still what it was made of: modules can be replaced, and their attributes set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from torch_strongdual.errors import UnsupportedModelError
from torch_strongdual.nn._branch_layers import BranchLayers
from torch_strongdual.nn._branch_surgery import copied_layer
from torch_strongdual.nn._stacked_convolution import CONVOLUTIONS
from torch_strongdual.nn._stacked_layer import StackedLayer
from torch_strongdual.nn.gated_relu import GatedReLU

__all__ = ["check_unchanged"]


_OF_ONE_BRANCH = (nn.Linear, *CONVOLUTIONS, GatedReLU)


def check_unchanged(layers: Mapping[str, nn.Module | None], linear_names: Sequence[str]) -> None:
    """Check layers as a new network would: what is certified has to be what the forward pass computes.

    Args:
        layers: Name and module, in order.
        linear_names: Which of them have stacked weights.

    Raises:
        UnsupportedModelError: If a layer that cannot be in a branch has taken the place of another, or its options are out of
            range now.
        ShapeError: If widths no longer fit.
    """
    branch = []
    for name, layer in layers.items():
        is_stacked = isinstance(layer, StackedLayer)
        if layer is None or is_stacked != (name in linear_names) or isinstance(layer, _OF_ONE_BRANCH):
            raise UnsupportedModelError(
                f"Layer {name!r} was replaced by {layer}, which is no layer of all branches. Make a new ParallelNet of the "
                "layers wanted, and assign weights to `weight` and `bias` of its layers."
            )
        branch.append((name, copied_layer(layer, 0, num_branches=2)))
    BranchLayers.parse(branch)
