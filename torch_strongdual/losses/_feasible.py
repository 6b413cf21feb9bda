"""Feasible points from exact ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from torch_strongdual.losses._arrays import as_tensor
from torch_strongdual.losses._rounding import Array, row_distances
from torch_strongdual.losses.abstract_dual_loss import FeasiblePoint

__all__ = ["to_feasible_point"]


def to_feasible_point(given: Tensor, point: Array, exact: Array | None, dual_lower: Callable[[Array], float]) -> FeasiblePoint:
    """What is proven by ``exact``, a point exactly in the domain near ``point``; nothing if it is ``None``."""
    if exact is None:
        unknown = torch.full((len(point),), math.inf, dtype=torch.float64, device=given.device)
        return FeasiblePoint(dual_point=given.detach().to(torch.float64), row_correction=unknown, dual_lower=-math.inf)
    lower = dual_lower(exact)
    return FeasiblePoint(
        dual_point=as_tensor(exact, given),
        row_correction=as_tensor(row_distances(exact, point), given),
        dual_lower=lower if math.isfinite(lower) else -math.inf,
    )
