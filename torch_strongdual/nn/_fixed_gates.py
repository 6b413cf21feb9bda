"""What gated layers share: gate vectors that stay float64 and untrained whatever happens to the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FixedGates"]


class FixedGates(nn.Module):
    """Holds the buffer ``gate_vector``, in float64 always.

    A gate that is rounded is another gate: the network, and the set of networks a certificate speaks of, would change with
    ``.half()``. So conversions of dtype leave the buffer alone; moves between devices take it along.

    Args:
        gate_vector: Gates, last dimension the branch input.
    """

    gate_vector: Tensor

    def __init__(self, gate_vector: Tensor) -> None:
        super().__init__()
        self.register_buffer("gate_vector", gate_vector.detach().to(torch.float64, copy=True))

    def reset_parameters(self) -> None:
        """Draw the gates anew, each entry from the standard normal distribution."""
        with torch.no_grad():
            self.gate_vector.normal_()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        gates = self.gate_vector
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.gate_vector.dtype != torch.float64:
            self.gate_vector = gates.to(self.gate_vector.device)
        return self
