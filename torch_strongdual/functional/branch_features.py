"""Features and outputs of stacked branches from explicit weights: the slow, exact view that certification uses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["branch_features", "branch_outputs"]


def branch_features(
    inputs: Tensor,  # shape: (num_samples, in_features)
    weights: Sequence[Tensor],  # L - 1 of shape (num_branches, out, in)
    negative_slopes: Sequence[float],
    gate_masks: Tensor | None = None,  # shape: (num_branches, num_samples)
    biases: Sequence[Tensor | None] | None = None,  # L - 1 of shape (num_branches, out) or None
) -> Tensor:  # shape: (num_branches, num_samples, hidden_{L-1})
    r"""Features :math:`\phi_k(X)` of every branch, all layers but the last.

    Args:
        inputs: The matrix the first layer multiplies (a column of ones included where the weights have one).
        weights: Hidden weights in the layout of :class:`torch.nn.Linear`, stacked over branches.
        negative_slopes: Slope left of zero behind each hidden layer: 0 ReLU, 1 identity.
        gate_masks: Products of each branch's gates. Gates are fixed and multiply whole samples, so they commute with
            the linear layers and can be applied once, to the features (biases of later layers excluded).
        biases: Biases of hidden layers past the first one.

    Returns:
        Features, in the dtype and on the device of ``inputs``.

    Example:
        >>> x = torch.tensor([[1.0, -2.0]])
        >>> branch_features(x, [torch.eye(2)[None]], [0.5])  # one branch, leaky ReLU
        tensor([[[ 1., -1.]]])
    """
    hidden = torch.einsum("ni,koi->kno", inputs, weights[0])
    for index, slope in enumerate(negative_slopes):
        if index:
            hidden = torch.bmm(hidden, weights[index].transpose(1, 2))
            if biases is not None and (bias := biases[index]) is not None:
                hidden = hidden + bias[:, None, :]
        hidden = hidden if slope == 1.0 else torch.where(hidden >= 0, hidden, slope * hidden)
    return hidden if gate_masks is None else hidden * gate_masks[:, :, None]


def branch_outputs(
    inputs: Tensor,  # shape: (num_samples, in_features)
    weights: Sequence[Tensor],  # L of shape (num_branches, out, in)
    negative_slopes: Sequence[float],
    gate_masks: Tensor | None = None,  # shape: (num_branches, num_samples)
    biases: Sequence[Tensor | None] | None = None,
) -> Tensor:  # shape: (num_samples, out_features)
    r"""Sum of the branch outputs :math:`\sum_k \phi_k(X) W_{L,k}`, without the output bias.

    Args:
        inputs: See :func:`branch_features`.
        weights: All layers, the last one included.
        negative_slopes: See :func:`branch_features`.
        gate_masks: See :func:`branch_features`.
        biases: See :func:`branch_features`.

    Returns:
        Outputs, in the dtype and on the device of ``inputs``.

    Example:
        >>> x = torch.tensor([[1.0, -2.0]])
        >>> branch_outputs(x, [torch.eye(2)[None], torch.ones(1, 1, 2)], [0.0])
        tensor([[1.]])
    """
    features = branch_features(inputs, weights[:-1], negative_slopes, gate_masks, biases)
    return torch.einsum("knh,koh->no", features, weights[-1])
