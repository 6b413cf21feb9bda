"""Optimizer state that follows the branches of its parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["state_follows_branches_"]


def state_follows_branches_(
    optimizers: Iterable[Optimizer], parameters: Iterable[nn.Parameter], kept: Tensor, num_added: int, *, num_before: int
) -> None:
    """Keep the state of the branches ``kept``, and give ``num_added`` new ones state zero, in place.

    State belongs to branches if its first dimension counts them: moments of the parameter's shape, factored moments, one
    number a branch. All other state (step counts) stays.

    Args:
        optimizers: Any that may train the parameters.
        parameters: Stacked parameters, of shape ``(num_branches, ...)``.
        kept: Numbers of the branches kept, int64.
        num_added: New branches, at the end.
        num_before: Number of branches before.
    """
    stacked = list(parameters)
    for optimizer in optimizers:
        for parameter in stacked:
            if parameter in optimizer.state:
                state: dict[str, Any] = optimizer.state[parameter]
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == num_before:
                        old = value[kept.to(value.device)]
                        state[name] = torch.cat([old, old.new_zeros(num_added, *old.shape[1:])])
