"""Rescaling of branches so that all layers have the same norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_strongdual.functional._branch_weights import ScaledWeights, check_branch_weights, per_branch, safe_norms

__all__ = ["rebalanced"]


def rebalanced(weights: Sequence[Tensor]) -> list[Tensor]:
    r"""Return the same branches with all layers of a branch at the same Frobenius norm.

    Each layer is multiplied by a positive number, and these numbers multiply to one, so with positively homogeneous
    activations the network's function does not change, nor does the product form or the l2 path form of the penalty; the power
    form falls to the product form, its minimum over all such rescalings.

    Args:
        weights: Branch weight list: one tensor of shape ``(num_branches, out, in)`` a layer, a first-layer bias being the
            last column of the first one.

    Returns:
        New tensors of the same shapes, dtype and device. A branch with a zero layer is returned as it is: its function is
        zero, and a layer that is not zero keeps its direction and size.

    Raises:
        InvalidInputError: If ``weights`` is empty or not floating point.
        ShapeError: If the shapes are not those of stacked branches.

    Example:
        >>> first, last = rebalanced([torch.tensor([[[8.0]]]), torch.tensor([[[2.0]]])])
        >>> first.item(), last.item()
        (4.0, 4.0)
    """
    check_branch_weights(weights)
    scaled = ScaledWeights.of(weights)
    norms = torch.stack([safe_norms(weight) for weight in scaled.scaled])
    # the common norm is root * 2 ** exponent: the mantissas and the exponents are averaged apart, so nothing overflows
    root = torch.where(scaled.is_dead, 1.0, norms).log().mean(dim=0).exp()
    exponent = scaled.exponents.mean(dim=0).exp2()
    balanced = []
    for weight, part, norm in zip(weights, scaled.scaled, norms, strict=True):
        factor = (root / torch.where(scaled.is_dead, 1.0, norm)) * exponent
        balanced.append(torch.where(per_branch(scaled.is_dead, weight), weight, part * per_branch(factor, weight)))
    return balanced
