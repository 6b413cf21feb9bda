"""The patches of convolutional branches with a pooling of zeros and ones: nothing is rounded when a dual point is spread."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor

from torch_strongdual.nn.patch_map import PatchGrid, PatchMap

__all__ = ["CountedPatches"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CountedPatches:
    """Pooling by sums over windows, to be divided by ``window``: the dual norm is that of the sums over ``window``, exactly.

    Args:
        grid: Patches, and which of them each location sums.
        window: Number of positions in an average (of padding, too, if that is counted).
    """

    grid: PatchGrid
    window: int

    @classmethod
    def of(cls, patch_map: PatchMap, inputs: Tensor) -> CountedPatches | None:
        """Patches of ``inputs``; ``None`` if windows have different sizes."""
        grid = patch_map.grid(inputs)
        largest = float(grid.pooling.max())
        if not largest > 0.0:
            return None
        window = round(1.0 / largest)
        is_used = grid.pooling != 0.0
        if ((grid.pooling * window - 1.0).abs()[is_used] > 1e-12).any():
            return None
        counted = dataclasses.replace(grid, pooling=is_used.to(grid.pooling.dtype), pooling_error=0)
        return cls(grid=counted, window=window)
