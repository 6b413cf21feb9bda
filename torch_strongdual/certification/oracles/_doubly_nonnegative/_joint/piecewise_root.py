"""Roots of many increasing, piecewise linear functions at once."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["piecewise_root"]


def piecewise_root(low: Tensor, value: Tensor, slope: Tensor, bends: Tensor, growth: Tensor) -> Tensor:
    """Where increasing, piecewise linear functions are zero, up to rounding; shape (n,).

    Args:
        low: At or before the roots, shape (n,).
        value: Of the functions there, at most zero, shape (n,).
        slope: Theirs before all bends, above zero, shape (n,).
        bends: At or after ``low``, in any order, shape (m, n).
        growth: Of the slope at each, negative too, shape (m, n).
    """
    places, order = torch.sort(bends, dim=0)
    places = torch.cat([low[None], places])
    slopes = slope + torch.cat([torch.zeros_like(low)[None], growth.gather(0, order).cumsum(0)])
    values = torch.cat([value[None], value + (slopes[:-1] * places.diff(dim=0)).cumsum(0)])
    last = ((values <= 0.0).sum(0) - 1).clamp(min=0)[None]
    found: Tensor = (places.gather(0, last) - values.gather(0, last) / slopes.gather(0, last))[0]
    return found
