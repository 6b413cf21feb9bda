"""Dual norms of data with few axes that matter: the problem on those, plus a bound on what the others add."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._verified_psd import gamma
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.abstract_two_layer_oracle import AbstractTwoLayerOracle
from torch_strongdual.certification.oracles.spectral_norm import SpectralNorms
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem

__all__ = ["bound_by_leading_axes", "remainder_bound"]

FloatArray = NDArray[np.float64]

_UNDERFLOW = 1e-140
_LEAST_RANK = 3  # closed forms do below
_SHARE = 0.5  # of the gap allowed that the remainder may use up


def bound_by_leading_axes(
    oracle: AbstractTwoLayerOracle, problem: SphereProblem, request: BoundRequest, starts: FloatArray, *, max_rank: int
) -> SphereBound | None:
    r"""Bound a one-sided problem of one output by that on its first coordinates; ``None`` where too much would be lost.

    With ``u = (v, w)``, :math:`(x_i'u)_+ = (x_i'(v, 0))_+ + t_i x_i'(0, w)` for some :math:`t_i \in [0, 1]`. So the maximum is
    at most :math:`\kappa_r \|v\| + \rho \|w\| \le (\kappa_r^2 + \rho^2)^{1/2}`, :math:`\kappa_r` the maximum on the first
    r coordinates and :math:`\rho` that of :func:`remainder_bound`.

    Args:
        oracle: For the problem of small rank.
        problem: In principal coordinates, largest first, so that little is left for the last ones.
        request: What is needed.
        starts: Unit vectors with good values, shape (m, rank).
        max_rank: Try no more coordinates than this, and no fewer than three.
    """
    lower = float(np.max(problem.values(starts), initial=0.0)) if len(starts) else 0.0
    goal = min(max(request.floor, request.target or 0.0, (1.0 + request.rtol) * lower), request.known_upper)
    for rank in range(_LEAST_RANK, min(max_rank, problem.rank - 1) + 1):
        remainder = remainder_bound(problem, rank)
        if not math.hypot(lower, remainder) <= lower + _SHARE * (goal - lower):
            continue
        needed = math.sqrt(max(goal**2 - remainder**2, 0.0)) * (1.0 - 1e-9)
        leading = _first_coordinates(problem, rank)
        points = starts[:, :rank] / np.maximum(np.linalg.norm(starts[:, :rank], axis=1), 1e-300)[:, None]
        asked = dataclasses.replace(request, rtol=0.1 * request.rtol, floor=needed, target=None, known_upper=math.inf)
        found = oracle.maximise(leading, asked, points)
        return _lifted(problem, found, starts, remainder)
    return None


def remainder_bound(problem: SphereProblem, rank: int) -> float:
    r"""Proven bound on :math:`\|G_2 + \sum_i t_i \lambda_i r_i\|` over :math:`t \in [0, 1]^n`, in the last coordinates.

    About the centre t = 1/2, :math:`\|\sum_i s_i \lambda_i r_i\| \le \tfrac12 \|\lambda / w\| \|\operatorname{diag}(w) R\|_2`
    for :math:`|s_i| \le \tfrac12` and any weights w > 0 where :math:`\lambda_i \ne 0`; w is one, or the root of the modulus.

    Args:
        problem: One output; entries of moderate size.
        rank: Coordinates that are not part of it.
    """
    rows, duals = problem.rows[:, rank:], problem.duals[:, 0]
    number, width = rows.shape
    if number == 0 or width == 0:
        return float(np.linalg.norm(problem.linear[rank:])) * (1.0 + gamma(width + 4)) + _UNDERFLOW
    halves = 0.5 * duals
    centre = problem.linear[rank:, 0] + rows.T @ halves
    size = float(np.abs(halves) @ np.linalg.norm(rows, axis=1) + np.linalg.norm(problem.linear[rank:]))
    roots = np.sqrt(np.abs(duals))
    # Weighted duals: |duals| / w, with the rounding of the quotient or the root.
    choices = [(np.ones(number), np.abs(duals)), (roots, roots)]
    norms = [float(np.linalg.norm(d)) * float(SpectralNorms.of((w[:, None] * rows)[None]).upper[0]) for w, d in choices]
    rounding = gamma(number + width + 16)
    spread = 0.5 * min(norms) * (1.0 + rounding) + rounding * size
    return (float(np.linalg.norm(centre)) + spread) * (1.0 + rounding) + rounding * size + _UNDERFLOW


def _first_coordinates(problem: SphereProblem, rank: int) -> SphereProblem:
    return SphereProblem(
        rows=np.ascontiguousarray(problem.rows[:, :rank]), duals=problem.duals, linear=problem.linear[:rank], one_sided=True
    )


def _lifted(problem: SphereProblem, found: SphereBound, starts: FloatArray, remainder: float) -> SphereBound:
    """The bound on the whole problem; points of the small one are points of it."""
    upper = math.hypot(found.upper, remainder) * (1.0 + gamma(8)) if math.isfinite(found.upper) else math.inf
    padded = np.hstack([found.points, np.zeros((len(found.points), problem.rank - found.points.shape[1]))])
    points = np.concatenate([starts, padded]) if len(starts) else padded
    values = problem.values(points)
    points = points[np.argsort(-values, kind="stable")]
    return SphereBound(upper=upper, lower=float(np.max(values, initial=0.0)), points=points, stats=found.stats)
