"""An optimal network as a differentiable function of what the training problem was."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_strongdual.nn import BranchSpec

__all__ = ["DifferentiableOptimum"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DifferentiableOptimum:
    r"""The optimal network with the activation patterns of a given one, :math:`f(X) = \sum_j s_j\, \sigma(X v_j) + b`.

    Autograd leads from whatever is computed from it back to ``path_decay`` and the targets it was made with.

    Args:
        first_layers: :math:`v_j`, which carry the magnitudes, shape ``(num_branches, in_features)``, float64; a first-layer
            bias is the last column.
        signs: :math:`s_j`, 1 or -1, shape ``(num_branches,)``.
        output_bias: Shape ``(1,)``, or ``None``.
        spec: Architecture of these branches, their gates included.
    """

    first_layers: Tensor
    signs: Tensor
    output_bias: Tensor | None
    spec: BranchSpec

    def __call__(self, inputs: Tensor) -> Tensor:  # shape: (num_samples, 1)
        """Outputs of the network on any inputs, float64.

        Args:
            inputs: As the network takes them, shape ``(num_samples, ...)``.
        """
        hidden = self.spec.features(inputs, [self.first_layers[:, None]], self.spec.gate_masks(inputs))[:, :, 0]
        outputs = (self.signs @ hidden)[:, None]
        return outputs if self.output_bias is None else outputs + self.output_bias

    def penalty(self) -> Tensor:  # shape: ()
        """Product penalty summed over branches, without ``path_decay``: the optimum's derivative in ``path_decay``."""
        total: Tensor = torch.linalg.vector_norm(self.first_layers, dim=1).sum()
        return total
