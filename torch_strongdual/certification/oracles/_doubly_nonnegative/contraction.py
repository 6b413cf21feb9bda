"""Products with the expansion of a lift that use its structure."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift

__all__ = ["Contraction"]


class Contraction:
    r"""``E'ME`` for matrices of lifted vectors, in :math:`O(n^2 r)` operations instead of :math:`O(n^3)`.

    E is the identity on (1, u), and adds to the rows of z and s a multiple of u and a copy of an open entry of z.

    Args:
        lift: Which samples are open.
        device: Of the matrices, which are float64.
    """

    def __init__(self, lift: Lift, *, device: torch.device) -> None:
        first, opened = 1 + lift.rank, np.flatnonzero(lift.signs == 0)
        self._first = first
        self._active = torch.from_numpy(lift.active.start + opened).to(device)
        self._inactive = torch.from_numpy(lift.inactive.start + opened).to(device)
        self._slopes = torch.from_numpy(np.ascontiguousarray(lift.expansion[first:, 1:first])).to(device)  # (2 n, r)

    def __call__(self, matrix: Tensor) -> Tensor:
        """``E' matrix E``, symmetric to the bit for symmetric matrices."""
        half = self._right(self._right(matrix).T)
        return 0.5 * (half + half.T)

    def _right(self, matrix: Tensor) -> Tensor:
        """``matrix E``."""
        first = self._first
        linear = matrix[:, 1:first] + matrix[:, first:] @ self._slopes
        opened = matrix[:, self._active] + matrix[:, self._inactive]
        return torch.cat([matrix[:, :1], linear, opened], dim=1)
