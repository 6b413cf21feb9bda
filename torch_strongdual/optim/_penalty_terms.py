"""What the path penalty contributes to an optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_strongdual.functional import path_penalty_gradients
from torch_strongdual.functional._branch_weights import exclusive_products, per_branch
from torch_strongdual.optim._branch_structure import BranchStructure, accumulation_dtype, branch_norms

__all__ = ["PenaltyTerms"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PenaltyTerms:
    """Gradient of ``path_decay * path_penalty`` at the present weights, kept as factors times directions.

    Args:
        factors: One ``(num_branches,)`` tensor a parameter, or ``None`` where the penalty is not differentiated but left to
            the proximal step (the last layer of the product form).
        directions: One tensor a parameter; the gradient is ``factors * directions``.
        sizes: Norm of the gradient in every layer and branch, ``(num_branches,)`` each. For the last layer of the product form
            this is the rate of the proximal step: ``path_decay`` times the norms of the other layers.
    """

    factors: list[Tensor | None]
    directions: list[Tensor]
    sizes: list[Tensor]

    @classmethod
    def at(cls, params: Sequence[Tensor], structure: BranchStructure, *, penalty: str, path_decay: float) -> PenaltyTerms:
        """Evaluate the penalty's part of the step at ``params``."""
        if penalty == "l2_path":
            return cls._of_gradients(params, structure, path_decay)
        norms = structure.norms(params)
        num_layers = len(norms)
        if penalty == "product":
            sizes = [path_decay * others for others in exclusive_products(norms)]
            # a zero layer is a zero direction: any finite factor gives the subgradient zero
            quotients = [size / norm.clamp(min=_tiny(norm)) for size, norm in zip(sizes, norms, strict=True)]
        else:
            sizes = [path_decay * norm ** (num_layers - 1) for norm in norms]
            quotients = [path_decay * norm ** (num_layers - 2) for norm in norms]
        factors: list[Tensor | None] = [None] * len(params)
        for layer, quotient in zip(structure.layers, quotients, strict=True):
            for position in layer:
                factors[position] = quotient
        if penalty == "product":
            factors[structure.last_weight] = None
        return cls(factors=factors, directions=list(params), sizes=sizes)

    @classmethod
    def _of_gradients(cls, params: Sequence[Tensor], structure: BranchStructure, path_decay: float) -> PenaltyTerms:
        gradients = path_penalty_gradients(structure.weights(params), "l2_path")
        factor = gradients[0].new_full((gradients[0].shape[0],), path_decay, dtype=accumulation_dtype(gradients[0]))
        return cls(
            factors=[factor] * len(params),
            directions=structure.unstack(gradients),
            sizes=[path_decay * branch_norms(gradient) for gradient in gradients],
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
            if (factor := self.factors[position]) is not None:
                summed.append(index)
                bases.append(gradients[index])
                directions.append(self.directions[position])
                factors.append(per_branch(factor, gradients[index]).to(gradients[index].dtype))
        if foreach and summed:
            results = list(torch._foreach_addcmul(bases, directions, factors))
        else:
            results = [torch.addcmul(*terms) for terms in zip(bases, directions, factors, strict=True)]
        for index, result in zip(summed, results, strict=True):
            total[index] = result
        return total


def _tiny(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).tiny
