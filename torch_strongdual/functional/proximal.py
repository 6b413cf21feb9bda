"""Proximal map of the norm of whole branches."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_strongdual._checks import check_floating, check_ndim, check_shape
from torch_strongdual.functional._branch_weights import per_branch, safe_norms

__all__ = ["prox_branch_norm"]


def prox_branch_norm(
    last_weight: Tensor,  # shape: (num_branches, out, in)
    threshold: Tensor,  # shape: (num_branches,)
) -> Tensor:  # shape: (num_branches, out, in)
    r"""Block soft-thresholding: shorten every branch's weight by its threshold, to exactly zero if it is no longer than that.

    The minimiser over :math:`V` of :math:`\frac{1}{2} \|V - W\|_F^2 + \sum_k t_k \|V_k\|_F`. With
    :math:`t_k` = step size times ``path_decay`` times the norms of the branch's other layers it is the implicit step on the
    product form of the path penalty in the last layer, which removes whole branches.

    Args:
        last_weight: Weights of one layer, stacked over branches.
        threshold: Non-negative lengths to take off. Not checked (it would stall a GPU); a negative one counts as zero.

    Returns:
        A new tensor of the shape, dtype and device of ``last_weight``.

    Raises:
        InvalidInputError: If ``last_weight`` is not floating point.
        ShapeError: If ``last_weight`` has not three dimensions, or ``threshold`` is not one number a branch.

    Example:
        >>> prox_branch_norm(torch.tensor([[[3.0, 4.0]], [[0.3, 0.4]]]), torch.tensor([1.0, 1.0]))
        tensor([[[2.4000, 3.2000]],
        <BLANKLINE>
                [[0.0000, 0.0000]]])

    References:
        Parikh, Boyd, "Proximal Algorithms", Foundations and Trends in Optimization 2014, section 6.5.1.
    """
    check_floating("last_weight", last_weight)
    check_ndim("last_weight", last_weight, 3, "(num_branches, out, in)")
    check_shape("threshold", threshold, (last_weight.shape[0],), "one number a branch")
    norms = safe_norms(last_weight)
    is_kept = ~(norms <= threshold)  # so written, NaN stays NaN instead of turning into zero
    shrinkage = 1 - threshold.clamp(min=0) / torch.where(is_kept, norms, 1.0)
    return torch.where(per_branch(is_kept, last_weight), last_weight * per_branch(shrinkage, last_weight), 0.0)
