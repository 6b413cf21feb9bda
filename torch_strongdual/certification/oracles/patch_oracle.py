"""The dual norm of convolutional branches: that of a two-layer branch on all patches."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from torch_strongdual.certification.dual_norm_bound import DualNormBound, Witness
from torch_strongdual.certification.oracles._patches.merged_rows import MergedRows
from torch_strongdual.certification.oracles.abstract_oracle import AbstractDualNormOracle, BoundRequest
from torch_strongdual.certification.oracles.row_space import UNIT_ROUNDOFF
from torch_strongdual.errors import UnsupportedModelError
from torch_strongdual.nn.branch_spec import BranchSpec
from torch_strongdual.nn.patch_map import PatchGrid, PatchMap

__all__ = ["PatchOracle", "PatchState"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatchState:
    """What lasts between calls.

    Args:
        patch_map: Kernel positions and pooling.
        grid: All patches of the data.
        merged: The distinct ones.
        state: State of the inner oracle.
    """

    patch_map: PatchMap
    grid: PatchGrid
    merged: MergedRows
    state: Any


@final
class PatchOracle(AbstractDualNormOracle):
    r"""Convolution, activation, average pooling and a linear layer: hands the patches to an oracle for dense branches.

    A convolution multiplies every patch :math:`z_{ip}` of a sample with the same kernels, and average pooling is a matrix A of
    positions and locations, so that

    .. math:: \max_{\|W\|_F \|V\|_F \le 1} \langle\Lambda, f\rangle
        = \max_{\|w\| \le 1} \Big\| \sum_{i,p} (\Lambda_i \otimes A_{\cdot p}) s(w' z_{ip}) \Big\|_2 ,

    the dual norm of a two-layer dense branch whose rows are the patches and whose dual variables are
    :math:`\Lambda_i \otimes A_{\cdot p}`: with global pooling :math:`\Lambda_i` over the number of positions, the same for all
    patches of a sample; with L locations c L outputs. Nothing is lost, so the bound is as tight as the inner one. Its rank
    is at most the size of a patch, whatever the size of the image. Equal patches become one row, parallel ones too where that
    is exact (integer data), and zero ones none: in pictures with a plain background most of them.

    Args:
        inner: Bounds dense two-layer branches, such as :class:`AutoTwoLayerOracle`, or :class:`LinearOracle` for branches
            without activation.

    Example:
        >>> from torch import nn
        >>> from torch_strongdual.certification.deadline import Deadline
        >>> from torch_strongdual.certification.oracles.angular_sweep_oracle import AngularSweepOracle
        >>> from torch_strongdual.nn import branch_spec_of
        >>> layers = nn.Conv1d(1, 1, 2, bias=False), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(1, 1)
        >>> oracle = PatchOracle(AngularSweepOracle())
        >>> state = oracle.init(branch_spec_of(nn.Sequential(*layers)), torch.tensor([[[4.0, 0.0, 3.0]]]))
        >>> found = oracle.bound(state, torch.tensor([[2.0]]), BoundRequest(deadline=Deadline(1.0)))
        >>> round(found.upper, 9), [weight.round(decimals=9).tolist() for weight in found.witnesses[0].weights]
        (5.0, [[[0.8, 0.6]], [[1.0]]])
    """

    def __init__(self, inner: AbstractDualNormOracle) -> None:
        self.inner = inner

    def supports(self, spec: BranchSpec) -> str | None:
        """Convolutional branches whose counterpart on patches the inner oracle supports."""
        if spec.patch_map is None:
            return f"PatchOracle is for convolutional branches; this one is {spec}"
        return self.inner.supports(spec.on_patches())

    def init(self, spec: BranchSpec, inputs: Tensor) -> PatchState:
        """Cut the inputs into patches, merge them, and prepare the inner oracle."""
        if (reason := self.supports(spec)) is not None or spec.patch_map is None:
            raise UnsupportedModelError(reason or "")
        grid = spec.patch_map.grid(inputs.detach().cpu())
        merged = MergedRows.of(grid.rows.numpy())
        state = self.inner.init(spec.on_patches(), torch.from_numpy(merged.rows))
        return PatchState(patch_map=spec.patch_map, grid=grid, merged=merged, state=state)

    def bound(self, state: PatchState, dual_point: Tensor, request: BoundRequest) -> DualNormBound:
        """Bound the dual norm; see :meth:`AbstractDualNormOracle.bound`."""
        begin = time.perf_counter()
        spread = state.grid.spread(dual_point.detach().cpu().to(torch.float64)).numpy()
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is no bound, below
            duals = state.merged.summed(spread)
            lost = state.merged.rounding(spread, state.grid.pooling_error)
        if not lost < np.inf:
            return DualNormBound(upper=np.inf, stats={"limited_by": "non-finite numbers in the data or the dual point"})
        found = self.inner.bound(state.state, torch.from_numpy(duals), _less(request, lost))
        stats = {"patches": float(len(spread)), "distinct_patches": float(len(duals)), **found.stats}
        stats["seconds"] = time.perf_counter() - begin
        return DualNormBound(
            upper=(found.upper + lost) * (1.0 + 4 * UNIT_ROUNDOFF),
            lower=found.lower,
            witnesses=tuple(_folded(witness, state.patch_map) for witness in found.witnesses),
            stats=stats,
        )


def _less(request: BoundRequest, lost: float) -> BoundRequest:
    """The request for a bound to which ``lost`` is added afterwards."""
    target = None if request.target is None else max(request.target * (1.0 - 1e-15) - lost, 0.0)
    floor = max(request.floor * (1.0 - 1e-15) - lost, 0.0)
    return dataclasses.replace(request, floor=floor, target=target, known_upper=request.known_upper + lost)


def _folded(witness: Witness, patch_map: PatchMap) -> Witness:
    """The branch on patches as a convolutional branch."""
    *hidden, last = witness.weights
    return dataclasses.replace(witness, weights=(*hidden, patch_map.from_patch_head(last)))
