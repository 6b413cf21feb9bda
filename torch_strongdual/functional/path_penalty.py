"""Path penalties of stacked branches: product, power and l2 path form."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from torch_strongdual._checks import check_in
from torch_strongdual.functional._branch_weights import ScaledWeights, check_branch_weights, safe_norms

__all__ = ["PATH_PENALTIES", "l2_path_penalty", "path_penalty", "power_penalty", "product_penalty"]

PATH_PENALTIES = ("product", "power", "l2_path")
"""Names that ``kind`` and ``penalty`` arguments accept."""


def path_penalty(weights: Sequence[Tensor], kind: str = "product") -> Tensor:  # shape: (num_branches,)
    r"""Path penalty of every branch: what ``path_decay`` multiplies in the training objective.

    The objective is ``loss + path_decay * path_penalty(weights, kind).sum()``. Unlike weight decay at three layers and more,
    each of these makes the training problem of a parallel network one with zero duality gap.

    Args:
        weights: Branch weight list: one tensor of shape ``(num_branches, out, in)`` a layer, a first-layer bias being the
            last column of the first one.
        kind: ``"product"`` (:func:`product_penalty`), ``"power"`` (:func:`power_penalty`) or ``"l2_path"``
            (:func:`l2_path_penalty`).

    Returns:
        One number a branch, in the dtype and on the device of the weights. A branch with a zero layer has penalty zero
        (the power form: the penalty of its other layers) and finite gradients.

    Shape:
        - weights: :math:`L` tensors :math:`(K, h_l, h_{l-1})`
        - output: :math:`(K)`

    Raises:
        InvalidInputError: If ``kind`` is unknown, or ``weights`` is empty or not floating point.
        ShapeError: If the shapes are not those of stacked branches.

    Example:
        >>> weights = [torch.full((2, 3, 4), 0.5), torch.ones(2, 1, 3)]
        >>> path_penalty(weights, "product")
        tensor([3., 3.])

    References:
        Wang, Ergen, Pilanci, "Parallel Deep Neural Networks Have Zero Duality Gap", ICLR 2023.
        https://arxiv.org/abs/2110.06482
    """
    check_in("kind", kind, PATH_PENALTIES)
    penalties = {"product": product_penalty, "power": power_penalty, "l2_path": l2_path_penalty}
    return penalties[kind](weights)


def product_penalty(weights: Sequence[Tensor]) -> Tensor:  # shape: (num_branches,)
    r"""Product of the Frobenius norms of a branch's layers, :math:`\prod_l \|W_l\|_F`.

    The gradient at a layer :math:`l` is :math:`\prod_{m \ne l} \|W_m\|_F \cdot W_l / \|W_l\|_F`. At a zero layer, where the
    penalty has a kink, it is taken as zero (the subgradient of least norm); the gradient of the other layers is zero there,
    since their factor contains the zero norm. The function is smooth, and has correct derivatives of all orders, wherever no
    layer is zero. Norms and the product overflow or underflow only where the result does.

    Args:
        weights: Branch weight list, see :func:`path_penalty`.

    Returns:
        One number a branch.

    Raises:
        InvalidInputError: If ``weights`` is empty or not floating point.
        ShapeError: If the shapes are not those of stacked branches.

    Example:
        >>> product_penalty([torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[2.0]]])])
        tensor([10.])
    """
    check_branch_weights(weights)
    scaled = ScaledWeights.of(weights)
    return scaled.restore(functools.reduce(operator.mul, [safe_norms(weight) for weight in scaled.scaled]))


def power_penalty(weights: Sequence[Tensor]) -> Tensor:  # shape: (num_branches,)
    r"""Mean over the layers of the ``L``-th power of their Frobenius norms, :math:`\frac{1}{L} \sum_l \|W_l\|_F^L`.

    By the inequality of arithmetic and geometric means it is at least the product form, and equal to it where a branch is
    balanced (all its layers have the same norm; see :func:`torch_strongdual.functional.rebalanced`). So both forms give
    the same minimum of the training objective. For ``L = 2`` it is half the squared norm: weight decay. Smooth for even ``L``
    and twice differentiable for ``L = 3``.

    Args:
        weights: Branch weight list, see :func:`path_penalty`.

    Returns:
        One number a branch.

    Raises:
        InvalidInputError: If ``weights`` is empty or not floating point.
        ShapeError: If the shapes are not those of stacked branches.

    Example:
        >>> power_penalty([torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[2.0]]])])
        tensor([14.5000])
    """
    check_branch_weights(weights)
    num_layers = len(weights)
    powers = [weight.square().sum(dim=(1, 2)) ** (num_layers // 2) for weight in weights] if num_layers > 1 else []
    if num_layers % 2:
        norms = [_branch_norms(weight) for weight in weights]
        powers = [norm * power for norm, power in zip(norms, powers, strict=True)] if powers else norms
    return torch.stack(powers).mean(dim=0)


def l2_path_penalty(weights: Sequence[Tensor]) -> Tensor:  # shape: (num_branches,)
    r"""l2 path norm: root of the sum over all paths from an input to an output of the product of their squared weights.

    That is :math:`\sqrt{1' |W_L|^2 \cdots |W_1|^2 1}` with entrywise squares: at most the product form, equal to it if every
    hidden layer has one unit, and unchanged when a hidden unit's incoming weights are multiplied, and its outgoing weights
    divided, by a positive number. Smooth where it is positive; where it is zero the gradient is taken as zero.

    Args:
        weights: Branch weight list, see :func:`path_penalty`.

    Returns:
        One number a branch.

    Raises:
        InvalidInputError: If ``weights`` is empty or not floating point.
        ShapeError: If the shapes are not those of stacked branches.

    Example:
        >>> l2_path_penalty([torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[2.0]]])])
        tensor([10.])

    References:
        Ergen, Pilanci, "Path Regularization: A Convexity and Sparsity Inducing Regularization for Parallel ReLU Networks",
        NeurIPS 2023. https://arxiv.org/abs/2110.09548
    """
    check_branch_weights(weights, chained=True)
    scaled = ScaledWeights.of(weights)
    paths = scaled.scaled[0].new_ones(weights[0].shape[0], weights[0].shape[2], 1)
    for weight in scaled.scaled:
        paths = torch.bmm(weight.square(), paths)
    total = paths.sum(dim=(1, 2))
    is_zero = total == 0
    return scaled.restore(torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, total).sqrt()))


def _branch_norms(weight: Tensor) -> Tensor:  # shape: (num_branches,)
    """Frobenius norm of every branch of one layer, without overflow or underflow on the way."""
    scaled = ScaledWeights.of([weight])
    return scaled.restore(safe_norms(scaled.scaled[0]))
