"""GatedReLU with one gate a branch."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_strongdual.functional.gate_masks import gate_masks
from torch_strongdual.nn._fixed_gates import FixedGates
from torch_strongdual.nn.gated_relu import GatedReLU

__all__ = ["StackedGatedReLU"]


torch.fx.wrap("gate_masks")


class StackedGatedReLU(FixedGates):
    """The gates of all branches of one layer; ``gate_vector`` has shape ``(num_branches, in_features)``."""

    @classmethod
    def from_gate(cls, gate: GatedReLU, num_branches: int, device: torch.device | str | None) -> StackedGatedReLU:
        """Give branch 0 the gate given and the others gates of their own."""
        first = gate.gate_vector.to(device=device)[None]
        others = torch.randn(num_branches - 1, first.shape[1], dtype=torch.float64, device=first.device)
        return cls(torch.cat([first, others]))

    def masks(self, branch_inputs: Tensor) -> Tensor:
        """Which samples each gate lets through, shape ``(num_branches, num_samples)``."""
        return gate_masks(branch_inputs, self.gate_vector)

    def forward(self, hidden: Tensor, masks: Tensor) -> Tensor:
        """Multiply ``hidden`` (num_branches, hidden, num_samples) by ``masks`` (num_branches, num_samples)."""
        return hidden * masks.unsqueeze(1).to(hidden.dtype)

    def branch_gate(self, index: int) -> GatedReLU:
        """Return branch ``index``'s gate as a layer of its own."""
        return GatedReLU(self.gate_vector.shape[1], gate_vector=self.gate_vector[index])

    def append_(self, gate_vectors: Tensor) -> None:
        """Add branches at the end."""
        self.gate_vector = torch.cat([self.gate_vector, gate_vectors.detach().to(self.gate_vector)])

    def keep_(self, indices: Tensor) -> None:
        """Keep only the branches ``indices``."""
        self.gate_vector = self.gate_vector[indices]

    def extra_repr(self) -> str:
        """Number of branches and width of the branch input."""
        return f"num_branches={self.gate_vector.shape[0]}, in_features={self.gate_vector.shape[1]}"
