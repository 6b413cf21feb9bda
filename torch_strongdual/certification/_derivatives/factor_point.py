"""A two-layer network as its two factors, with the side of every kink that each branch is on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FactorPoint"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FactorPoint:
    """Branches with one hidden unit, and where they stand with respect to the kinks.

    Args:
        first: First layers in reduced coordinates, shape ``(number, rank)``.
        last: Output layers, shape ``(number, out_features)``.
        bias: Output bias, shape ``(out_features,)``, or ``(0,)`` if there is none.
        sides: 1 or -1, or 0 where the first layer is held on the kink, shape ``(number, num_normals)``.
        gates: Number of the gates of each branch, int64, shape ``(number,)``.
    """

    first: Tensor
    last: Tensor
    bias: Tensor
    sides: Tensor
    gates: Tensor

    @property
    def number(self) -> int:
        """How many branches."""
        return len(self.first)

    def flat(self) -> Tensor:
        """All factors as one vector."""
        return torch.cat([self.first.flatten(), self.last.flatten(), self.bias])

    def split(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Such a vector as first layers, output layers and bias; differentiable."""
        first, last, bias = torch.split_with_sizes(flat, [self.first.numel(), self.last.numel(), self.bias.numel()])
        return first.reshape(self.first.shape), last.reshape(self.last.shape), bias

    def at(self, flat: Tensor, sides: Tensor) -> FactorPoint:
        """Other factors, on these sides."""
        first, last, bias = self.split(flat)
        return dataclasses.replace(self, first=first, last=last, bias=bias, sides=sides)

    def kept(self, which: Tensor) -> FactorPoint:
        """The branches that an index or mask picks."""
        return dataclasses.replace(
            self, first=self.first[which], last=self.last[which], sides=self.sides[which], gates=self.gates[which]
        )

    def magnitudes(self) -> Tensor:  # shape: (number,)
        """Product of the norms of both layers."""
        sizes: Tensor = torch.linalg.vector_norm(self.first, dim=1) * torch.linalg.vector_norm(self.last, dim=1)
        return sizes

    def balanced(self) -> FactorPoint:
        """Both layers of each branch of the same norm."""
        ratio = torch.linalg.vector_norm(self.last, dim=1) / torch.linalg.vector_norm(self.first, dim=1)
        factor = torch.where(ratio > 0.0, ratio, 1.0).sqrt()[:, None]
        return dataclasses.replace(self, first=self.first * factor, last=self.last / factor)
