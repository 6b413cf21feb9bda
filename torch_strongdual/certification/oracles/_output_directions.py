"""Dual norms of several outputs from those of single output directions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._verified_psd import gamma
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.local_ascent import local_maxima
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem
from torch_strongdual.certification.oracles.two_layer import AbstractTwoLayerOracle, two_sided_bound

__all__ = ["bound_by_outputs", "norm_from_directions", "output_directions"]

FloatArray = NDArray[np.float64]

_NUM_SECTORS = 8  # even; the cover of the half circle loses a factor of 1 / cos(pi / 16) = 1.0196


def output_directions(num_outputs: int) -> FloatArray:  # shape: (k, num_outputs)
    """Unit vectors for :func:`norm_from_directions`: the axes; for two outputs a fan over the half circle."""
    if num_outputs != 2:
        return np.eye(num_outputs)
    angles = np.arange(_NUM_SECTORS) * (math.pi / _NUM_SECTORS)
    fan = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    fan[0], fan[_NUM_SECTORS // 2] = (1.0, 0.0), (0.0, 1.0)
    return fan


def norm_from_directions(bounds: FloatArray, num_outputs: int) -> float:
    r"""Upper bound on :math:`\max_{\|v\| = 1} \kappa(\Lambda v)` from bounds along :func:`output_directions`.

    :math:`\|\Lambda'\phi\|^2 = \sum_j (\Lambda_j'\phi)^2 \le \sum_j \kappa(\Lambda_j)^2` for any branches.
    :math:`\kappa(\Lambda v)` is even and sublinear in v; for two outputs a direction between neighbours
    :math:`\delta` apart is :math:`v = a v_j + b v_{j+1}` with :math:`a, b \ge 0` and :math:`a + b \le 1/\cos(\delta/2)`.

    Example:
        >>> norm_from_directions(np.array([3.0, 4.0, 0.0]), 3) - 5.0 < 1e-12
        True
    """
    allowance = 1.0 + gamma(len(bounds) + 64)
    if num_outputs != 2:
        return math.sqrt(float(bounds @ bounds)) * allowance
    axes = math.hypot(float(bounds[0]), float(bounds[_NUM_SECTORS // 2]))
    fan = float(bounds.max()) / math.cos(0.5 * math.pi / _NUM_SECTORS)
    return min(axes, fan) * allowance


def bound_by_outputs(
    oracle: AbstractTwoLayerOracle, problem: SphereProblem, request: BoundRequest, starts: FloatArray, *, effort: str
) -> SphereBound:
    """Bound the norm of several outputs from single directions of them, each with an equal share of the time left.

    Args:
        oracle: Bounds one-sided problems of one output.
        problem: Of several outputs.
        request: When to stop.
        starts: Unit vectors to try first.
        effort: The key of ``stats`` to add up over the directions.
    """
    points = starts if len(starts) else local_maxima(problem)
    lower = float(np.max(problem.values(points), initial=0.0))
    directions = output_directions(problem.num_outputs)
    is_axis = np.abs(directions).max(axis=1) == 1.0
    bounds, spent = np.zeros(len(directions)), 0.0
    for number, index in enumerate(np.argsort(~is_axis, kind="stable")):
        # Of directions between the axes only the largest bound counts.
        asked = BoundRequest(
            rtol=request.rtol,
            floor=0.0 if is_axis[index] else max(lower, float(bounds.max())),
            deadline=request.deadline.fraction(1.0 / (len(directions) - number)),
        )
        column = SphereProblem(
            rows=problem.rows,
            duals=problem.duals @ directions[index][:, None],
            linear=problem.linear @ directions[index][:, None],
        )
        found = two_sided_bound(oracle, column, asked, points)
        bounds[index] = found.upper + gamma(problem.num_outputs + 4) * problem.magnitude()
        spent += float(found.stats.get(effort, 0.0))
    upper = norm_from_directions(bounds, problem.num_outputs)
    stats: dict[str, float | str] = {"outputs": "single directions of the outputs", effort: spent}
    if not request.is_met(upper, lower):
        stats["limited_by"] = "time" if request.deadline.expired else "treating the outputs one by one"
    return SphereBound(upper=upper, lower=lower, points=points, stats=stats)
