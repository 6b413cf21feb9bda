"""Chooses the two-layer oracle by the size of the reduced problem."""

from __future__ import annotations

import math
from typing import final

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.angular_sweep_oracle import AngularSweepOracle
from torch_strongdual.certification.oracles.box_branch_and_bound import BoxBranchAndBound
from torch_strongdual.certification.oracles.quadratic_relaxation import QuadraticRelaxation
from torch_strongdual.certification.oracles.rank_one_oracle import RankOneOracle
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem
from torch_strongdual.certification.oracles.two_layer import AbstractTwoLayerOracle

__all__ = ["AutoTwoLayerOracle"]

FloatArray = NDArray[np.float64]

_EASY_RANK = 7  # box branch and bound answers in about a second
_HOPELESS_RANK = 14


@final
class AutoTwoLayerOracle(AbstractTwoLayerOracle):
    """Closed form at rank 1, sweep at rank 2, boxes at small rank; relaxation first, then boxes, above.

    Says what it chose in ``stats["oracle"]``, and what limited it in ``stats["limited_by"]``.

    Args:
        boxes: The branch and bound to use, for one with a progress callback or a cell budget.

    Example:
        >>> from torch_strongdual.nn.branch_spec import BranchActivation, BranchSpec
        >>> AutoTwoLayerOracle().supports(BranchSpec(widths=(3, 1, 1), activations=(BranchActivation(),))) is None
        True
    """

    def __init__(self, *, boxes: BoxBranchAndBound | None = None) -> None:
        self._boxes = BoxBranchAndBound(max_rank=_HOPELESS_RANK) if boxes is None else boxes

    def needs_ascent(self, problem: SphereProblem) -> bool:
        """The closed forms see all maxima at once."""
        return problem.rank > 2

    def maximise(self, problem: SphereProblem, request: BoundRequest, starts: FloatArray) -> SphereBound:
        """Delegate to what suits the problem; see :meth:`AbstractTwoLayerOracle.maximise`."""
        if problem.rank <= 2:
            exact: AbstractTwoLayerOracle = RankOneOracle() if problem.rank <= 1 else AngularSweepOracle()
            return _named(exact, exact.maximise(problem, request, starts))
        if problem.rank <= _EASY_RANK:
            return _named(self._boxes, self._boxes.maximise(problem, request, starts))
        relaxation = QuadraticRelaxation()
        wide = problem.num_rows <= 2 * problem.rank
        share = 0.9 if problem.rank > self._boxes.max_rank else 0.5 if wide else 0.15
        relaxed_request = BoundRequest(
            rtol=request.rtol, floor=request.floor, target=request.target, deadline=request.deadline.fraction(share)
        )
        relaxed = _named(relaxation, relaxation.maximise(problem, relaxed_request, starts))
        if problem.rank > self._boxes.max_rank or request.is_met(relaxed.upper, relaxed.lower):
            return relaxed
        points = relaxed.points if len(relaxed.points) else starts
        return _tighter(_named(self._boxes, self._boxes.maximise(problem, request, points)), relaxed)


def _named(oracle: AbstractTwoLayerOracle, bound: SphereBound) -> SphereBound:
    """Say in ``stats`` which oracle gave the bound."""
    stats = {**bound.stats, "oracle": type(oracle).__name__}
    return SphereBound(upper=bound.upper, lower=bound.lower, points=bound.points, stats=stats)


def _tighter(last: SphereBound, before: SphereBound) -> SphereBound:
    """The smaller upper bound with its name, the larger lower bound, and all of ``last``'s other statistics."""
    stats = dict(last.stats)
    if before.upper < last.upper and math.isfinite(before.upper):
        stats["oracle"] = before.stats["oracle"]
    best = last if last.lower >= before.lower else before
    return SphereBound(upper=min(last.upper, before.upper), lower=best.lower, points=best.points, stats=stats)
