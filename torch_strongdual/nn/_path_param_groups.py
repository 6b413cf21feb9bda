"""Parameter groups that tell an optimizer which parameters the path penalty couples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from torch_strongdual._checks import check_in, check_non_negative
from torch_strongdual.functional.path_penalty import PATH_PENALTIES
from torch_strongdual.nn._leaf_checks import check_leaves
from torch_strongdual.nn._stacked_layer import StackedLayer

__all__ = ["path_param_groups"]


def path_param_groups(linears: Sequence[StackedLayer], path_decay: float, penalty: str) -> list[dict[str, Any]]:
    """See :meth:`torch_strongdual.nn.parallel_net.ParallelNet.path_param_groups`."""
    check_non_negative("path_decay", path_decay)
    check_in("penalty", penalty, PATH_PENALTIES)
    penalised_loss = ", or add `path_decay * net.path_penalty()` to the loss and use an optimizer of torch"
    check_leaves(linears, "whose norm the optimizer can shrink", penalised_loss)
    penalised: list[tuple[int, nn.Parameter]] = []
    free: list[nn.Parameter] = []
    for index, linear in enumerate(linears):
        penalised.append((index, linear.weight))
        if linear.bias is not None and index == 0:
            penalised.append((index, linear.bias))
        elif linear.bias is not None:
            free.append(linear.bias)
    group = {
        "params": [parameter for _, parameter in penalised],
        "layer_index": tuple(index for index, _ in penalised),
        "path_decay": path_decay,
        "penalty": penalty,
    }
    return [group, {"params": free, "path_decay": 0.0}] if free else [group]
