"""Moments as a sum over the two halves of a part of the sphere that is split at the sign of a sample."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["moment_halves"]

_TINY = 1e-300


def moment_halves(moments: Tensor, active: int, inactive: int) -> tuple[Tensor, Tensor]:
    """A start for the halves where the sample is on, and where it is off: two matrices whose sum is ``moments``.

    Of ``F F'`` they are what lies along the row of the entry that stays in F, and half of what lies along neither row. These
    are semidefinite, and the other entry's moments are zero in each: where the sample is never on and off at once, the two
    rows are orthogonal. Halving all of ``moments`` instead leaves iterations to tell the two apart.

    Args:
        moments: Symmetric, semidefinite up to the accuracy of the solver, shape (length, length).
        active: Place of ``z_i``.
        inactive: Place of ``s_i``.
    """
    on, off = (torch.outer(moments[k], moments[k]) / moments[k, k].clamp(min=_TINY) for k in (active, inactive))
    rest = 0.5 * (moments - on - off)
    return on + rest, off + rest
