"""Shape checks of a branch weight list, and its scaling by powers of two, shared by the functions of path penalties."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_strongdual._checks import check_floating, check_ndim
from torch_strongdual.errors import InvalidInputError, ShapeError

__all__ = ["ScaledWeights", "check_branch_weights", "exclusive_products", "per_branch", "safe_norms"]


def check_branch_weights(weights: Sequence[Tensor], *, chained: bool = False) -> None:
    """Raise unless ``weights`` is a branch weight list (see :class:`torch_strongdual.nn.branch_spec.BranchSpec`).

    Args:
        weights: One tensor a layer.
        chained: Whether each layer has to take every output of the one before exactly once, as linear layers do.

    Raises:
        InvalidInputError: If the list is empty, or holds something other than real floating point numbers.
        ShapeError: If a tensor is not ``(num_branches, out, in)``, the number of branches differs or widths do not chain.
    """
    if not weights:
        raise InvalidInputError("`weights` is empty; expected one tensor of shape (num_branches, out, in) a layer.")
    for index, weight in enumerate(weights):
        name = f"weights[{index}]"
        check_floating(name, weight)
        check_ndim(name, weight, 3, "(num_branches, out, in)")
        if 0 in weight.shape[1:]:
            raise ShapeError(f"`{name}` has shape {tuple(weight.shape)}; expected every width to be at least 1.")
        if weight.shape[0] != weights[0].shape[0]:
            raise ShapeError(
                f"`{name}` has {weight.shape[0]} branches (shape {tuple(weight.shape)}) but `weights[0]` has "
                f"{weights[0].shape[0]}; expected the same number in every layer."
            )
        # Kernels, and linear layers behind nn.Flatten, take every channel of the layer before several times.
        before = weights[index - 1].shape[1]
        if index and (weight.shape[2] != before if chained else weight.shape[2] % before):
            raise ShapeError(
                f"`{name}` takes {weight.shape[2]} inputs (shape {tuple(weight.shape)}) but the layer before it has "
                f"{before} outputs; expected widths that chain."
            )


def per_branch(factors: Tensor, tensor: Tensor) -> Tensor:  # shape: (num_branches, 1, ...)
    """Return ``factors`` of shape ``(num_branches,)`` with the dimensions it needs to multiply ``tensor`` branch by branch."""
    return factors.reshape(-1, *[1] * (tensor.ndim - 1))


def safe_norms(weight: Tensor) -> Tensor:  # shape: (num_branches,)
    """Frobenius norm of every branch, with derivatives of all orders equal to zero, not NaN, where the branch is zero."""
    squares = weight.square().sum(dim=(1, 2))
    is_zero = squares == 0
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, squares).sqrt())


def exclusive_products(factors: Sequence[Tensor]) -> list[Tensor]:
    """Return, for each of ``factors``, the product of all others: by running products, so zeros need no special case."""
    before = [torch.ones_like(factors[0])]
    after = [torch.ones_like(factors[0])]
    for factor, last in zip(factors[:-1], reversed(factors[1:]), strict=True):
        before.append(before[-1] * factor)
        after.append(after[-1] * last)
    return [left * right for left, right in zip(before, reversed(after), strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScaledWeights:
    """Branch weights divided by a power of two a layer and branch, so that the largest entry lies in [1/2, 1).

    The penalties are homogeneous of degree one in every layer: they are evaluated on ``scaled``, where nothing overflows or
    underflows, and multiplied by ``2 ** exponents.sum(0)``. Dividing by a power of two is exact, and the exponents carry
    no gradient, because their effect cancels.

    Args:
        scaled: The weights after division, one tensor a layer.
        exponents: Binary exponents as whole floating point numbers. Shape ``(num_layers, num_branches)``; 0 where a layer
            is zero or not finite.
        is_dead: Which branches have a layer that is zero. Shape ``(num_branches,)``.
    """

    scaled: list[Tensor]
    exponents: Tensor
    is_dead: Tensor

    @classmethod
    def of(cls, weights: Sequence[Tensor]) -> ScaledWeights:
        """Scale ``weights``."""
        dtype = weights[0].dtype
        peaks = torch.stack([weight.detach().abs().amax(dim=(1, 2)) for weight in weights])
        # frexp is not offered for half precision on every device
        exponents = torch.frexp(peaks.to(torch.promote_types(dtype, torch.float32))).exponent.to(dtype)
        limit = _exponent_limit(dtype)
        usable = torch.isfinite(peaks) & (peaks > 0)
        exponents = torch.where(usable, exponents, 0.0).clamp(-limit, limit)
        scaled = [weight * per_branch(torch.exp2(-e), weight) for weight, e in zip(weights, exponents, strict=True)]
        return cls(scaled=scaled, exponents=exponents, is_dead=(peaks == 0).any(dim=0))

    def restore(self, values: Tensor, without_layer: int | None = None) -> Tensor:  # shape: (num_branches,)
        """Return ``values * 2 ** exponents.sum(0)``, one layer left out if given; overflows only where the result does."""
        total = self.exponents.sum(dim=0)
        if without_layer is not None:
            total = total - self.exponents[without_layer]
        limit = 2 * _exponent_limit(values.dtype)
        total = torch.where(self.is_dead, 0.0, total).clamp(-limit, limit)
        half = torch.floor(total / 2)
        return values * torch.exp2(half) * torch.exp2(total - half)


def _exponent_limit(dtype: torch.dtype) -> int:
    """Largest whole ``e`` for which both ``2 ** e`` and ``2 ** -e`` are normal numbers."""
    return -math.frexp(torch.finfo(dtype).tiny)[1] + 1
