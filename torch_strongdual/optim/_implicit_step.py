"""The proximal step on the product form of the path penalty, in all layers of a branch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_strongdual.functional._branch_weights import per_branch
from torch_strongdual.optim._branch_structure import BranchStructure

__all__ = ["ImplicitStep"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImplicitStep:
    r"""Numbers that multiply each layer after the gradient step on the loss.

    Every layer is shortened by its threshold (block soft-thresholding). Where that would make a hidden layer zero, the branch
    is the zero function, and this is written as a zero *last* layer, from which the branch can revive: with a zero hidden
    layer, ReLU branches have no gradient anywhere. The hidden layer keeps its direction and takes over the norm of the last
    one. That changes neither the function nor the penalty, which are zero either way.

    Args:
        layers: Numbers of the layers that take part, in order.
        multipliers: Shape ``(len(layers), num_branches)``.
        norms: Norms of the layers after the gradient step, of the same shape.
        collapsed: Branches that a hidden layer made zero; ``None`` if the last layer does not take part.
    """

    layers: tuple[int, ...]
    multipliers: Tensor
    norms: Tensor
    collapsed: Tensor | None

    @classmethod
    def of(
        cls,
        params: Sequence[Tensor],
        structure: BranchStructure,
        layers: tuple[int, ...],
        thresholds: Tensor,  # shape: (len(layers), num_branches)
        old_norms: Tensor,  # shape: (num_layers, num_branches)
    ) -> ImplicitStep:
        """Compute the step.

        Args:
            params: The parameters after the gradient step.
            structure: Where the layers are in ``params``.
            layers: Numbers of the layers to shorten, in order, one or more; the others stand still.
            thresholds: Lengths to take off these.
            old_norms: Norms of all layers before the gradient step.
        """
        norms = structure.norms(params, layers)
        info = torch.finfo(norms.dtype)
        safe_norms = norms.clamp(min=info.tiny)
        multipliers = 1 - (thresholds / safe_norms).clamp(max=1)
        if layers[-1] != len(structure.layers) - 1 or len(layers) == 1:
            return cls(layers=layers, multipliers=multipliers, norms=norms, collapsed=None)
        vanishing = (norms[:-1] <= thresholds[:-1]) & (thresholds[:-1] > 0)
        takeover = (old_norms[-1] / safe_norms[:-1]).clamp(max=info.max)
        collapsed = vanishing.any(dim=0)
        hidden = torch.where(vanishing, takeover, multipliers[:-1])
        multipliers = torch.cat([hidden, torch.where(collapsed, 0.0, multipliers[-1:])])
        return cls(layers=layers, multipliers=multipliers, norms=norms, collapsed=collapsed)

    def apply(self, params: Sequence[Tensor], structure: BranchStructure) -> None:
        """Multiply the layers in place."""
        for layer, multiplier in zip(self.layers, self.multipliers.unbind(), strict=True):
            for position in structure.layers[layer]:
                params[position].mul_(per_branch(multiplier, params[position]).to(params[position].dtype))
