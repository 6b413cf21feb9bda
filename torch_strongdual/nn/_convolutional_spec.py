"""The architecture of a convolutional branch, as far as there is a dual norm bound for it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from torch_strongdual.errors import UnsupportedModelError
from torch_strongdual.nn._composed_activation import composed_activation
from torch_strongdual.nn._convolutional_layers import AVERAGE_POOLS, POOLS
from torch_strongdual.nn._stacked_convolution import StackedConvolution
from torch_strongdual.nn._stacked_layer import StackedLayer
from torch_strongdual.nn.branch_spec import BranchSpec
from torch_strongdual.nn.patch_map import PatchMap

__all__ = ["convolutional_spec"]

_SUPPORTED = (
    "it trains, but cannot be certified. Certified are convolution -> activation -> average pooling (global, local or none) -> "
    "nn.Flatten -> nn.Linear, the activation being ReLU, leaky ReLU or none"
)


def convolutional_spec(
    linears: Sequence[StackedLayer], between: Sequence[Sequence[nn.Module]], output_bias: bool
) -> BranchSpec:
    """Read the architecture off the layers of a network.

    Raises:
        UnsupportedModelError: If no bound is known for it; the message names the layer.
    """
    first, last = linears[0], linears[-1]
    if len(linears) != 2 or not isinstance(first, StackedConvolution):
        raise UnsupportedModelError(
            f"The branch has {len(linears)} layers with weights, the first of them convolutions: {_SUPPORTED}."
        )
    activations: list[nn.Module] = []
    pools: list[nn.Module] = []
    for module in between[0]:
        if isinstance(module, AVERAGE_POOLS):
            pools.append(module)
        elif isinstance(module, POOLS):
            raise UnsupportedModelError(f"The branch has maximum pooling, {module}: {_SUPPORTED}.")
        elif pools and not composed_activation([module]).is_identity:
            raise UnsupportedModelError(f"The branch has average pooling in front of its activation, {module}: {_SUPPORTED}.")
        else:
            activations.append(module)
    channels, *kernel_size = first.weight.shape[2:]
    patches = PatchMap(
        channels=channels,
        kernel_size=tuple(kernel_size),
        geometry=first.geometry,
        pools=tuple(pools),
        num_locations=last.fan_in // first.fan_out,
        has_bias=first.bias is not None,
    )
    return BranchSpec(
        widths=(first.fan_in, first.fan_out, last.fan_out),
        activations=(composed_activation(activations),),
        input_bias=first.bias is not None,
        output_bias=output_bias,
        patch_map=patches,
    )
