"""Weights that are parameters, and of this process, as training with the path penalty and changes of branches need them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from torch_strongdual.errors import InvalidInputError, UnsupportedModelError
from torch_strongdual.nn._stacked_layer import StackedLayer

__all__ = ["check_leaves", "check_local", "check_local_leaves"]


def check_leaves(linears: Sequence[StackedLayer], purpose: str, alternative: str = "") -> None:
    """Raise unless all weights and biases are parameters, each one of its own.

    Args:
        linears: The layers.
        purpose: What is done to parameters, a relative clause.
        alternative: What else would help, the end of a sentence.

    Raises:
        UnsupportedModelError: If a parametrization or a pruning mask computes one, or two layers share one; the message says
            which.
    """
    owners: dict[int, int] = {}
    for number, linear in enumerate(linears):
        for name, tensor in (("weight", linear.weight), ("bias", linear.bias)):
            if tensor is not None and not isinstance(tensor, nn.Parameter):
                raise UnsupportedModelError(
                    f"The {name} of linear layer {number} (counted from 0) is computed from other parameters, by a "
                    f"parametrization or a pruning mask; expected a parameter, {purpose}. Make it permanent "
                    f"(`parametrize.remove_parametrizations`, `prune.remove`){alternative}."
                )
            if tensor is not None and (other := owners.setdefault(id(tensor), number)) != number:
                raise UnsupportedModelError(
                    f"Linear layers {other} and {number} (counted from 0) share their {name}; expected one of its own each, "
                    f"{purpose}. Give one of them a copy."
                )


def check_local(weight: Tensor) -> None:
    """Raise if ``weight`` is sharded over processes, so that no single one has all branches.

    Raises:
        InvalidInputError: Saying how to gather the weights.
    """
    if hasattr(weight, "full_tensor"):  # a DTensor, without the import
        raise InvalidInputError(
            "The weights are sharded over processes; expected a network of this process. Load the weights into one that is not "
            "sharded: `torch.distributed.checkpoint.state_dict.get_model_state_dict` gathers them with `full_state_dict=True`."
        )


def check_local_leaves(linears: Sequence[StackedLayer], purpose: str) -> None:
    """Raise unless all weights and biases are parameters of this process; see :func:`check_leaves` and :func:`check_local`."""
    check_leaves(linears, purpose)
    check_local(linears[0].weight)
