"""The architecture of a branch of linear layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from torch_strongdual.nn._composed_activation import composed_activation
from torch_strongdual.nn._stacked_layer import StackedLayer
from torch_strongdual.nn.branch_spec import BranchSpec

__all__ = ["dense_spec"]


def dense_spec(linears: Sequence[StackedLayer], between: Sequence[Sequence[nn.Module]], *, flatten: bool) -> BranchSpec:
    """Read the architecture off the layers of a network, with a copy of the gates.

    Args:
        linears: All layers with weights.
        between: The modules behind each of them but the last.
        flatten: Whether a branch begins with nn.Flatten.
    """
    return BranchSpec(
        widths=(linears[0].weight.shape[2], *[linear.weight.shape[1] for linear in linears]),
        activations=tuple(composed_activation(modules) for modules in between),
        input_bias=linears[0].bias is not None,
        hidden_bias_layers=tuple(i for i, linear in enumerate(linears[1:-1], 1) if linear.bias is not None),
        output_bias=linears[-1].bias is not None,
        flatten=flatten,
    )
