"""Which samples each branch's fixed gate lets through."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gate_masks"]


def gate_masks(
    inputs: Tensor,  # shape: (num_samples, in_features)
    gate_vectors: Tensor,  # shape: (num_branches, in_features)
) -> Tensor:  # shape: (num_branches, num_samples)
    r"""Whether :math:`x_i' g_k \ge 0`, evaluated in float64 whatever the dtypes given.

    The one place where gate signs are evaluated: training and certification both call it, so that they speak of the same
    network. Autocast leaves float64 alone, so it has no effect here. A sample closer to a gate's hyperplane than float64
    rounding may fall on either side of it when the number of samples or branches in the call changes.

    Args:
        inputs: Branch inputs, without the column of ones of a first-layer bias.
        gate_vectors: One gate a branch.

    Returns:
        Boolean mask. NaN inputs close every gate.

    Example:
        >>> gate_masks(torch.tensor([[1.0, 0.0], [0.0, -1.0]]), torch.tensor([[1.0, 1.0]]))
        tensor([[ True, False]])
    """
    return gate_vectors.to(torch.float64) @ inputs.to(torch.float64).T >= 0
