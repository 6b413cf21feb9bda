"""Branches that are linear, gates apart: their layers multiplied once, instead of every sample passing through them all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["can_be_folded", "folded_layers", "gated_sum"]

_MAX_EXPONENTS = 600.0  # of the layers' sizes together, far from where products overflow or vanish


def can_be_folded(weights: Sequence[Tensor], negative_slopes: Sequence[float], *, is_gated: bool) -> bool:
    """Whether the layers of each branch may be multiplied, and whether that saves work.

    Gates of a branch are one number a sample, which commutes with its layers. Sizes far from one are left alone, where
    a product of layers could overflow or vanish although no output does.

    Args:
        weights: Branch weight list, in float64.
        negative_slopes: One for each hidden layer; gates apart, one is the identity.
        is_gated: Whether there are gates, so that branches cannot be summed.
    """
    if not negative_slopes or any(slope != 1.0 for slope in negative_slopes):
        return False
    if is_gated and weights[-1].shape[1] > min(weight.shape[1] for weight in weights[:-1]):
        return False
    sizes = [float(weight.abs().max()) if weight.numel() else 0.0 for weight in weights]
    if not all(math.isfinite(size) for size in sizes):
        return False
    return sum(abs(math.log2(size)) for size in sizes if size > 0.0) <= _MAX_EXPONENTS


def folded_layers(weights: Sequence[Tensor], lift: Callable[[Tensor], Tensor], *, is_gated: bool) -> Tensor:
    """Product of the layers of each branch, ``(num_branches, out, in)``; without gates the sum over branches, ``(out, in)``.

    Args:
        weights: Branch weight list.
        lift: Applied to every product, as an activation would be to what it yields.
        is_gated: Whether there are gates.
    """
    product = weights[-1]
    for weight in weights[-2:0:-1]:
        product = lift(product @ weight)
    if is_gated:
        return lift(product @ weights[0])
    return lift(product.transpose(0, 1).flatten(1) @ weights[0].flatten(0, 1))


def gated_sum(matrix: Tensor, folded: Tensor, masks: Tensor, chunk: int) -> Tensor:  # shape: (num_samples, out)
    """Sum over branches of what their folded layers give where their gates are open, ``chunk`` branches at a time."""
    total = matrix.new_zeros(folded.shape[1], matrix.shape[0])
    for part, open_gates in zip(torch.split(folded, chunk), torch.split(masks, chunk), strict=True):
        outputs = (part.flatten(0, 1) @ matrix.T).reshape(*part.shape[:2], matrix.shape[0])
        total += torch.einsum("kon,kn->on", outputs, open_gates)
    return total.T
