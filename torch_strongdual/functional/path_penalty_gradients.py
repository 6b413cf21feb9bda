"""Gradients of the path penalties in closed form, as optimizers use them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_strongdual._checks import check_in
from torch_strongdual.functional._branch_weights import (
    ScaledWeights,
    check_branch_weights,
    exclusive_products,
    per_branch,
    safe_norms,
)
from torch_strongdual.functional.path_penalty import PATH_PENALTIES

__all__ = ["path_penalty_gradients"]


def path_penalty_gradients(weights: Sequence[Tensor], kind: str = "product") -> list[Tensor]:
    r"""Gradient of the summed path penalties with respect to every layer, without autograd.

    Equal to ``torch.autograd.grad(path_penalty(weights, kind).sum(), weights)``, with the same choice of subgradients at zero
    layers, but cheaper, and correct even where the penalty itself is too small for the dtype.

    Args:
        weights: Branch weight list, see :func:`path_penalty`.
        kind: ``"product"``, ``"power"`` or ``"l2_path"``.

    Returns:
        One tensor a layer, of the shape, dtype and device of that layer's weights.

    Raises:
        InvalidInputError: If ``kind`` is unknown, or ``weights`` is empty or not floating point.
        ShapeError: If the shapes are not those of stacked branches.

    Example:
        >>> path_penalty_gradients([torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[2.0]]])])
        [tensor([[[1.2000, 1.6000]]]), tensor([[[5.]]])]
    """
    check_in("kind", kind, PATH_PENALTIES)
    check_branch_weights(weights, chained=kind == "l2_path")
    gradients = {"product": _product_gradients, "power": _power_gradients, "l2_path": _l2_path_gradients}
    return gradients[kind](weights)


def _product_gradients(weights: Sequence[Tensor]) -> list[Tensor]:
    scaled = ScaledWeights.of(weights)
    norms = [safe_norms(weight) for weight in scaled.scaled]
    gradients = []
    for layer, others in enumerate(exclusive_products(norms)):
        size = scaled.restore(others, without_layer=layer)
        gradients.append(_unit(scaled.scaled[layer], norms[layer]) * per_branch(size, weights[layer]))
    return gradients


def _power_gradients(weights: Sequence[Tensor]) -> list[Tensor]:
    num_layers = len(weights)
    if num_layers == 2:
        return [weight.clone() for weight in weights]
    gradients = []
    for weight in weights:
        scaled = ScaledWeights.of([weight])
        norms = safe_norms(scaled.scaled[0])
        size = scaled.restore(norms) ** (num_layers - 1)
        gradients.append(_unit(scaled.scaled[0], norms) * per_branch(size, weight))
    return gradients


def _l2_path_gradients(weights: Sequence[Tensor]) -> list[Tensor]:
    scaled = ScaledWeights.of(weights)
    squares = [weight.square() for weight in scaled.scaled]
    from_input = [squares[0].new_ones(weights[0].shape[0], weights[0].shape[2], 1)]
    to_output = [squares[0].new_ones(weights[0].shape[0], weights[-1].shape[1], 1)]
    for square, last in zip(squares[:-1], reversed(squares[1:]), strict=True):
        from_input.append(torch.bmm(square, from_input[-1]))
        to_output.append(torch.bmm(last.transpose(1, 2), to_output[-1]))
    norms = torch.bmm(squares[-1], from_input[-1]).sum(dim=(1, 2)).sqrt()
    gradients = []
    for layer, (paths_in, paths_out) in enumerate(zip(from_input, reversed(to_output), strict=True)):
        weight = scaled.scaled[layer]
        size = scaled.restore(torch.ones_like(norms), without_layer=layer)
        gradients.append(_unit(weight * (paths_out @ paths_in.transpose(1, 2)), norms) * per_branch(size, weight))
    return gradients


def _unit(numerator: Tensor, norms: Tensor) -> Tensor:
    """Divide every branch by its norm; branches of norm zero give zero."""
    is_zero = norms == 0
    quotient = numerator / per_branch(torch.where(is_zero, 1.0, norms), numerator)
    return torch.where(per_branch(is_zero, numerator), 0.0, quotient)
