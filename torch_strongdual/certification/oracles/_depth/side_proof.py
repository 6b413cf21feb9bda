"""Proofs of what lines and groups promise: bounds on the leaves, by an oracle for one activation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._depth.side_memory import SideBound
from torch_strongdual.certification.oracles._depth.sign_cells import covers_all_signs
from torch_strongdual.certification.oracles._depth.slope_search import SlopeSearch
from torch_strongdual.certification.oracles._depth.slope_tree import Leaf
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.abstract_two_layer_oracle import AbstractTwoLayerOracle
from torch_strongdual.certification.oracles.row_space import UNIT_ROUNDOFF, RowSpace

__all__ = ["proven_cells", "proven_side"]

FloatArray = NDArray[np.float64]

_LEAF_ACCURACY = 0.25  # of the tolerance: the rest is for the lines


def proven_side(inner: AbstractTwoLayerOracle, row_space: RowSpace, search: SlopeSearch, request: BoundRequest) -> SideBound:
    """Bound the leaves at the slopes found, largest first: no leaf has to be bounded below the largest."""
    leaves = search.tree.leaves(search.choices)
    estimates = [
        float(np.max(leaf.on(row_space.rows).values(found), initial=0.0))
        for leaf, found in zip(leaves, search.points, strict=True)
    ]
    upper, limited_by = 0.0, ""
    order = sorted(range(len(leaves)), key=lambda index: -estimates[index])
    for position, index in enumerate(order):
        if leaves[index].is_never_positive:
            continue
        asked = BoundRequest(
            rtol=_LEAF_ACCURACY * request.rtol,
            floor=max(request.floor, upper),
            deadline=request.deadline.fraction(1.0 / (len(order) - position)),
        )
        value, reason = _leaf_bound(inner, row_space, leaves[index], asked, search.points[index])
        if value > upper:
            upper, limited_by = value, reason
    return SideBound(upper=upper, search=search, limited_by=limited_by)


def proven_cells(inner: AbstractTwoLayerOracle, row_space: RowSpace, side: SideBound, request: BoundRequest) -> SideBound:
    """Bound all cases of a partition by signs: together they are a bound for the side, if no signs are left out."""
    upper, limited_by = 0.0, ""
    cells = list(side.cells)
    if not covers_all_signs([cell.search.tree for cell in cells if cell.search is not None]):
        return replace(side, upper=math.inf, cells=())
    order = sorted(range(len(cells)), key=lambda index: -cells[index].estimate)
    for position, index in enumerate(order):
        search = cells[index].search
        if search is None:
            continue
        deadline = request.deadline.fraction(1.0 / (len(order) - position))
        asked = BoundRequest(rtol=request.rtol, floor=max(request.floor, upper), deadline=deadline)
        cells[index] = proven_side(inner, row_space, search, asked)
        if cells[index].upper > upper:
            upper, limited_by = cells[index].upper, cells[index].limited_by
    return replace(side, upper=upper, limited_by=limited_by, cells=tuple(cells))


def _leaf_bound(
    inner: AbstractTwoLayerOracle, row_space: RowSpace, leaf: Leaf, request: BoundRequest, starts: FloatArray
) -> tuple[float, str]:
    """Proven maximum of a leaf over the unit ball of the original coordinates."""
    found = inner.maximise(leaf.on(row_space.rows), request, starts)
    rounding = leaf.rounding(row_space.rows)
    lost = row_space.loss_of_reduction(leaf.sample_slopes)
    upper = ((found.upper + rounding) * row_space.basis_norm + lost) * (1.0 + 16 * UNIT_ROUNDOFF)
    return (upper if math.isfinite(upper) else math.inf), str(found.stats.get("limited_by", ""))
