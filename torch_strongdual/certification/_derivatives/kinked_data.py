"""The hyperplanes on which hidden units of two-layer networks have their kinks, and which samples lie behind each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["KinkedData"]

_DECIMALS = 10  # to which two unit normals agree that are one


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KinkedData:
    """Samples as multiples of unit normals, of which there is one for all samples on a line through zero.

    Args:
        rows: The samples, shape ``(num_samples, rank)``.
        normals: Unit vectors, shape ``(num_normals, rank)``; none for a linear activation.
        owner: Number of each sample's normal, or ``num_normals`` where it has none, int64, shape ``(num_samples,)``.
        extent: Each sample in units of its normal, with sign; 0 where it has none, shape ``(num_samples,)``.
        negative_slope: Of the activation.
        masks: Products of gates, 0 or 1, shape ``(num_gates, num_samples)``; one row of ones without gates.
    """

    rows: Tensor
    normals: Tensor
    owner: Tensor
    extent: Tensor
    negative_slope: float
    masks: Tensor

    @classmethod
    def of(cls, rows: Tensor, negative_slope: float, masks: Tensor | None) -> KinkedData:
        """Find the normals."""
        number, rank = rows.shape
        masks = torch.ones(1, number, dtype=torch.float64) if masks is None else masks
        lengths = torch.linalg.vector_norm(rows, dim=1)
        used = (lengths > 0.0).numpy() & (negative_slope != 1.0)
        units = (rows / torch.where(lengths > 0.0, lengths, 1.0)[:, None]).numpy()
        rounded = np.round(units, _DECIMALS)
        leading = np.take_along_axis(rounded, (rounded != 0.0).argmax(axis=1)[:, None], axis=1) if rank else rounded
        signs = np.where(leading < 0.0, -1.0, 1.0)
        keys = rounded[used] * signs[used] + 0.0  # no negative zeros
        _, first, place = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        normals = torch.from_numpy((units[used] * signs[used])[first].reshape(-1, rank))
        owner = np.full(number, len(normals))
        owner[used] = place.ravel()
        extent = np.zeros(number)
        extent[used] = lengths.numpy()[used] * signs[used, 0]
        return cls(
            rows=rows,
            normals=normals,
            owner=torch.from_numpy(owner),
            extent=torch.from_numpy(extent),
            negative_slope=negative_slope,
            masks=masks,
        )

    def gains(self, sides: Tensor, gates: Tensor) -> Tensor:  # shape: (number, num_samples)
        """Slope of each branch's hidden unit at each sample.

        Args:
            sides: Positive or not: the side of each normal that a branch's first layer is on, shape ``(number, num_normals)``.
            gates: Number of the gates of each branch, int64, shape ``(number,)``.
        """
        padded = torch.cat([sides, torch.ones(len(sides), 1, dtype=torch.float64)], dim=1)[:, self.owner]
        is_active = (self.extent == 0.0) | ((padded > 0.0) == (self.extent > 0.0))
        slopes = torch.where(is_active, 1.0, torch.full_like(padded, self.negative_slope))
        return slopes * self.masks[gates]

    def jumps(self, slopes: Tensor, gates: Tensor) -> Tensor:  # shape: (number, num_normals)
        """By how much the derivative along each normal is larger on its positive side than on its negative side.

        Args:
            slopes: Derivative of the loss in each branch's hidden unit, were it active, shape ``(number, num_samples)``.
            gates: Number of the gates of each branch.
        """
        weighted = (1.0 - self.negative_slope) * slopes * self.masks[gates] * self.extent.abs()
        total = torch.zeros(len(slopes), len(self.normals) + 1, dtype=torch.float64)
        return total.index_add(1, self.owner, weighted)[:, :-1]
