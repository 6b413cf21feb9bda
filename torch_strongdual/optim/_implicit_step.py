"""The proximal step on the product form of the path penalty, in all layers of a branch at once."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_strongdual.functional._branch_weights import per_branch
from torch_strongdual.optim._branch_structure import BranchStructure

__all__ = ["ImplicitStep"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImplicitStep:
    r"""Numbers that multiply each layer after the gradient step on the loss.

    Every layer is shortened by its threshold (block soft-thresholding). Where that would make a hidden layer zero, the branch
    is the zero function, and this is written as a zero *last* layer, from which the branch can revive: with a zero hidden
    layer, ReLU branches have no gradient anywhere. The hidden layer keeps its direction and takes over the norm of the last
    one. That changes neither the function nor the penalty, which are zero either way.

    Args:
        multipliers: One ``(num_branches,)`` tensor by number of layer.
        norms: Norms of the layers after the gradient step, by number of layer.
        collapsed: Branches that a hidden layer made zero; ``None`` if the last layer does not take part.
    """

    multipliers: Mapping[int, Tensor]
    norms: Mapping[int, Tensor]
    collapsed: Tensor | None

    @classmethod
    def of(
        cls, params: Sequence[Tensor], structure: BranchStructure, thresholds: Mapping[int, Tensor], old_norms: Sequence[Tensor]
    ) -> ImplicitStep:
        """Compute the step.

        Args:
            params: The parameters after the gradient step.
            structure: Where the layers are in ``params``.
            thresholds: Lengths to take off, by number of layer; layers without one stand still.
            old_norms: Norms of all layers before the gradient step.
        """
        norms = {layer: structure.norm(params, layer) for layer in thresholds}
        multipliers = {
            layer: 1 - (threshold / norms[layer].clamp(min=_tiny(threshold))).clamp(max=1)
            for layer, threshold in thresholds.items()
        }
        last = len(structure.layers) - 1
        hidden = [layer for layer in thresholds if layer != last]
        if last not in thresholds or not hidden:
            return cls(multipliers=multipliers, norms=norms, collapsed=None)
        vanishing = {layer: (norms[layer] <= thresholds[layer]) & (thresholds[layer] > 0) for layer in hidden}
        for layer in hidden:
            takeover = (old_norms[last] / norms[layer].clamp(min=_tiny(norms[layer]))).clamp(
                max=torch.finfo(norms[layer].dtype).max
            )
            multipliers[layer] = torch.where(vanishing[layer], takeover, multipliers[layer])
        collapsed = functools.reduce(torch.logical_or, vanishing.values())
        multipliers[last] = torch.where(collapsed, 0.0, multipliers[last])
        return cls(multipliers=multipliers, norms=norms, collapsed=collapsed)

    def apply(self, params: Sequence[Tensor], structure: BranchStructure) -> None:
        """Multiply the layers in place."""
        for layer, multiplier in self.multipliers.items():
            for position in structure.layers[layer]:
                params[position].mul_(per_branch(multiplier, params[position]).to(params[position].dtype))


def _tiny(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).tiny
