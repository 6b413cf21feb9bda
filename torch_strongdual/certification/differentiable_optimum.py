"""An optimal network as a differentiable function of what the training problem was."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_strongdual.nn import BranchSpec

__all__ = ["DifferentiableOptimum"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DifferentiableOptimum:
    r"""The optimal network near a given one, :math:`f(X) = \sum_j \sigma(X v_j) w_j' + b`.

    Autograd leads from whatever is computed from it back to ``path_decay`` and the targets it was made with.

    Args:
        first_layers: :math:`v_j`, shape ``(num_branches, in_features)``, float64; a first-layer bias is the last column.
        output_layers: :math:`w_j`, shape ``(num_branches, out_features)``, float64. Of a single output they are the signs of
            the branches, 1 or -1, and first layers carry the magnitudes; of several both layers have the same norm.
        output_bias: Shape ``(out_features,)``, or ``None``.
        spec: Architecture of these branches, their gates included.
    """

    first_layers: Tensor
    output_layers: Tensor
    output_bias: Tensor | None
    spec: BranchSpec

    @property
    def num_branches(self) -> int:
        """How many branches there are."""
        return len(self.first_layers)

    @property
    def signs(self) -> Tensor:  # shape: (num_branches,)
        """Signs of the branches' effect on the first output: all there is to know of the output layers of a single one."""
        return self.output_layers[:, 0].sign()

    def __call__(self, inputs: Tensor) -> Tensor:  # shape: (num_samples, out_features)
        """Outputs of the network on any inputs, float64.

        Args:
            inputs: As the network takes them, shape ``(num_samples, ...)``.
        """
        hidden = self.spec.features(inputs, [self.first_layers[:, None]], self.spec.gate_masks(inputs))[:, :, 0]
        outputs = hidden.T @ self.output_layers
        return outputs if self.output_bias is None else outputs + self.output_bias

    def penalty(self) -> Tensor:  # shape: ()
        """Product penalty summed over branches, without ``path_decay``: the optimum's derivative in ``path_decay``."""
        norms = torch.linalg.vector_norm(self.first_layers, dim=1), torch.linalg.vector_norm(self.output_layers, dim=1)
        total: Tensor = (norms[0] * norms[1]).sum()
        return total
