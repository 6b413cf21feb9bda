"""Weights that are parameters, as training with the path penalty and the addition of branches need them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from torch_strongdual.errors import UnsupportedModelError
from torch_strongdual.nn._stacked_layer import StackedLayer

__all__ = ["check_leaves"]


def check_leaves(linears: Sequence[StackedLayer], purpose: str, alternative: str = "") -> None:
    """Raise unless all weights and biases are parameters.

    Args:
        linears: The layers.
        purpose: What is done to parameters, a relative clause.
        alternative: What else would help, the end of a sentence.

    Raises:
        UnsupportedModelError: If a parametrization or a pruning mask computes one; the message says which.
    """
    for number, linear in enumerate(linears):
        for name, tensor in (("weight", linear.weight), ("bias", linear.bias)):
            if tensor is not None and not isinstance(tensor, nn.Parameter):
                raise UnsupportedModelError(
                    f"The {name} of linear layer {number} (counted from 0) is computed from other parameters, by a "
                    f"parametrization or a pruning mask; expected a parameter, {purpose}. Make it permanent "
                    f"(`parametrize.remove_parametrizations`, `prune.remove`){alternative}."
                )
