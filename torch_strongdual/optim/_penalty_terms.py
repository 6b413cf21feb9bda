"""What the path penalty contributes to an optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_strongdual.functional import path_penalty_gradients
from torch_strongdual.functional._branch_weights import per_branch
from torch_strongdual.optim._branch_structure import BranchStructure, branch_norms

__all__ = ["PenaltyTerms"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PenaltyTerms:
    """Gradient of ``path_decay * path_penalty`` at the present weights, kept as factors times directions.

    Args:
        factors: One ``(num_branches,)`` tensor or number a parameter, or ``None`` where the penalty is left to the implicit
            step.
        directions: One tensor a parameter; the gradient is ``factors * directions``.
        sizes: Norm of the gradient in every layer and branch, shape ``(num_layers, num_branches)``. In implicit layers this is
            the rate of the step: ``path_decay`` times the norms of the other layers.
        norms: Norms of the layers, of that shape, of the product and the power form.
        implicit_layers: Numbers of the layers whose penalty is left to the implicit step, in order.
    """

    factors: list[Tensor | float | None]
    directions: list[Tensor]
    sizes: Tensor
    norms: Tensor | None
    implicit_layers: tuple[int, ...]

    @classmethod
    def at(
        cls,
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        structure: BranchStructure,
        *,
        penalty: str,
        path_decay: float,
    ) -> PenaltyTerms:
        """Evaluate the penalty's part of the step at ``params``; only which of ``grads`` are missing matters."""
        if penalty == "l2_path":
            return cls._of_gradients(params, structure, path_decay)
        norms = structure.norms(params)
        num_layers = len(structure.layers)
        sizes = path_decay * (_products_of_others(norms) if penalty == "product" else norms ** (num_layers - 1))
        # the proximal map is that of whole layers: if a weight moves but its bias is frozen, the penalty is differentiated
        implicit_layers = tuple(
            number
            for number, layer in enumerate(structure.layers)
            if penalty == "product" and all(grads[position] is not None for position in layer)
        )
        factors: list[Tensor | float | None] = [None] * len(params)
        if len(implicit_layers) < num_layers:
            # a zero layer is a zero direction: any finite factor gives the subgradient zero
            is_product = penalty == "product"
            quotients = sizes / norms.clamp(min=_tiny(norms)) if is_product else path_decay * norms ** (num_layers - 2)
            for number, layer in enumerate(structure.layers):
                for position in layer:
                    factors[position] = None if number in implicit_layers else quotients[number]
        return cls(factors=factors, directions=list(params), sizes=sizes, norms=norms, implicit_layers=implicit_layers)

    @classmethod
    def _of_gradients(cls, params: Sequence[Tensor], structure: BranchStructure, path_decay: float) -> PenaltyTerms:
        gradients = path_penalty_gradients(structure.weights(params), "l2_path")
        return cls(
            factors=[path_decay] * len(params),
            directions=structure.unstack(gradients),
            sizes=path_decay * torch.stack([branch_norms(gradient) for gradient in gradients]),
            norms=None,
            implicit_layers=(),
        )

    def added_to(self, gradients: Sequence[Tensor], positions: Sequence[int], *, foreach: bool) -> list[Tensor]:
        """Return the loss gradients at ``positions`` plus those of the penalty; the tensors given are not changed.

        Args:
            gradients: Loss gradients.
            positions: Which parameter of the group each of them belongs to.
            foreach: Whether to use the multi-tensor operations.

        Returns:
            One tensor a gradient; the very tensor given where there is nothing to add.
        """
        total = list(gradients)
        summed, bases, directions, factors = [], [], [], []
        for index, position in enumerate(positions):
            factor, gradient = self.factors[position], gradients[index]
            if isinstance(factor, Tensor):
                summed.append(index)
                bases.append(gradient)
                directions.append(self.directions[position])
                factors.append(per_branch(factor, gradient).to(gradient.dtype))
            elif factor is not None:
                total[index] = torch.add(gradient, self.directions[position], alpha=factor)
        if foreach and summed:
            results = list(torch._foreach_addcmul(bases, directions, factors))
        else:
            results = [torch.addcmul(*terms) for terms in zip(bases, directions, factors, strict=True)]
        for index, result in zip(summed, results, strict=True):
            total[index] = result
        return total


def _products_of_others(norms: Tensor) -> Tensor:  # shape: (num_layers, num_branches)
    """For each layer the product of the norms of all others: by running products, so zeros need no special case."""
    if len(norms) == 2:
        return norms.flip(0)
    one = torch.ones_like(norms[:1])
    before = torch.cat([one, norms[:-1]]).cumprod(dim=0)
    after = torch.cat([norms[1:], one]).flip(0).cumprod(dim=0).flip(0)
    return before * after


def _tiny(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).tiny
