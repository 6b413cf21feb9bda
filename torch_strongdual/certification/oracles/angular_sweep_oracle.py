"""The dual norm on data of rank two: sort the angles, sweep the circle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.abstract_two_layer_oracle import AbstractTwoLayerOracle
from torch_strongdual.certification.oracles.row_space import UNIT_ROUNDOFF
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem, distinct_points

__all__ = ["AngularSweepOracle"]

FloatArray = NDArray[np.float64]

_TURN = 2.0 * math.pi
_MAX_POINTS = 16


@final
class AngularSweepOracle(AbstractTwoLayerOracle):
    r"""Exact dual norm of two-layer (leaky) ReLU branches on data of rank at most two, any number of outputs.

    On the circle a row switches on and off where it is orthogonal to u; between these 2n angles :math:`w(u) = M'u` is
    linear, M is a prefix sum, and its maximum over the arc has a closed form. Time O(n log n): milliseconds for thousands
    of rows.

    **Rounding.** Computed angles are off by at most some roundoffs :math:`\delta`. A row counted on the wrong side of a
    computed angle has :math:`|x_i'u| \le \delta \|x_i\|` there, so all such mistakes together change w by at most
    :math:`\delta \sum_i \|\Lambda_i\| \|x_i\|`: sorting mistakes cannot hurt. Prefix sums err by the usual
    bound of sums, and the closed form on an arc by roundoffs of :math:`\|M\|_F`.

    Example:
        >>> import torch
        >>> from torch_strongdual.certification.deadline import Deadline
        >>> from torch_strongdual.nn.branch_spec import BranchActivation, BranchSpec
        >>> oracle = AngularSweepOracle()
        >>> state = oracle.init(BranchSpec(widths=(2, 1, 1), activations=(BranchActivation(),)), torch.eye(2))
        >>> found = oracle.bound(state, torch.tensor([[3.0], [4.0]]).double(), BoundRequest(deadline=Deadline()))
        >>> round(found.upper, 9), round(found.lower, 9)
        (5.0, 5.0)
    """

    def needs_ascent(self, problem: SphereProblem) -> bool:
        """Never: all maxima are seen at once, of both signs."""
        return False

    def limits(self, rank: int, num_rows: int, num_outputs: int) -> str | None:
        """Rank at most two."""
        return None if rank <= 2 else f"AngularSweepOracle is for data of rank two; these have rank {rank}"

    def maximise(self, problem: SphereProblem, request: BoundRequest, starts: FloatArray) -> SphereBound:
        """Sweep the circle; time is too short to look at the request."""
        plane = _in_the_plane(problem)
        arcs = _Arcs.of(plane)
        at_ends = _values(arcs.maps, arcs.begin, plane.one_sided)
        offset, peaks = _peaks(arcs, plane.one_sided)
        inside = offset <= arcs.width
        best = max(0.0, float(at_ends.max()), float(peaks.max(initial=0.0, where=inside)))
        # Of magnitude(): 9 n for prefix sums of 3 n terms, 8 c for the closed form, the rest for angles.
        rounding = (10.0 * plane.num_rows + 8.0 * plane.num_outputs + 400.0) * UNIT_ROUNDOFF * plane.magnitude()
        points = _local_maxima(plane, arcs, at_ends, np.where(inside, offset, np.nan), peaks)
        if problem.rank < 2:  # w depends on the first coordinate only, and is largest at an end of the interval
            points = np.unique(np.sign(points[:, : problem.rank]), axis=0)
            points = distinct_points(points, problem.values(points), _MAX_POINTS)
        lower = float(problem.values(points[:1]).max(initial=0.0))
        return SphereBound(
            upper=best * (1.0 + 4 * UNIT_ROUNDOFF) + 1.01 * rounding + 1e-150,  # 1e-150: squares below it vanish
            lower=lower,
            points=points,
            stats={"arcs": float(len(arcs.begin))},
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Arcs:
    """Arcs that cover the circle, and the linear map on each.

    Args:
        begin: Angles in [0, 2 pi], ascending, shape (m,).
        width: Shape (m,).
        maps: ``M`` of ``w(u) = M'u``, shape (m, 2, c).
    """

    begin: FloatArray
    width: FloatArray
    maps: FloatArray

    @classmethod
    def of(cls, plane: SphereProblem) -> _Arcs:
        used = plane.rows.any(axis=1)
        rows, duals = plane.rows[used], plane.duals[used]
        angles = np.arctan2(rows[:, 1], rows[:, 0])
        opens, closes = np.mod(angles - math.pi / 2, _TURN), np.mod(angles + math.pi / 2, _TURN)
        jumps = rows[:, :, None] * duals[:, None, :]  # (n, 2, c)
        at_zero = opens > closes
        begin = plane.linear + rows[at_zero].T @ duals[at_zero]
        events = np.concatenate([opens, closes])
        order = np.argsort(events, kind="stable")
        steps = np.concatenate([begin[None], np.concatenate([jumps, -jumps])[order]])
        edges = np.concatenate([[0.0], events[order], [_TURN]])
        return cls(begin=edges[:-1], width=np.diff(edges), maps=np.cumsum(steps, axis=0))


def _in_the_plane(problem: SphereProblem) -> SphereProblem:
    """The same problem with coordinates of zeros up to two."""
    missing = 2 - problem.rank
    if not missing:
        return problem
    return SphereProblem(
        rows=np.pad(problem.rows, ((0, 0), (0, missing))),
        duals=problem.duals,
        linear=np.pad(problem.linear, ((0, missing), (0, 0))),
        one_sided=problem.one_sided,
    )


def _on_circle(angles: FloatArray) -> FloatArray:  # (m,) -> (m, 2)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _values(maps: FloatArray, angles: FloatArray, one_sided: bool) -> FloatArray:  # (m, 2, c), (m,) -> (m,)
    """``||M'u||``, or ``M'u`` itself, at one angle for each map."""
    images = np.cos(angles)[:, None] * maps[:, 0] + np.sin(angles)[:, None] * maps[:, 1]
    result: FloatArray = images[:, 0] if one_sided else np.sqrt(np.einsum("mc,mc->m", images, images))
    return result


def _peaks(arcs: _Arcs, one_sided: bool) -> tuple[FloatArray, FloatArray]:  # (m,), (m,)
    r"""Where each map is largest on the whole circle, as an angle behind the begin of its arc, and how large.

    :math:`\|M'u\|^2 = a + b \cos 2\theta + d \sin 2\theta` peaks at half the angle of (b, d), twice a turn.
    """
    if one_sided:
        first, second = arcs.maps[:, 0, 0], arcs.maps[:, 1, 0]
        return np.mod(np.arctan2(second, first) - arcs.begin, _TURN), np.hypot(first, second)
    first, second = (np.einsum("mc,mc->m", arcs.maps[:, k], arcs.maps[:, k]) for k in (0, 1))
    cosine, sine = 0.5 * (first - second), np.einsum("mc,mc->m", arcs.maps[:, 0], arcs.maps[:, 1])
    angles = 0.5 * np.arctan2(sine, cosine)
    return np.mod(angles - arcs.begin, math.pi), np.sqrt(0.5 * (first + second) + np.hypot(cosine, sine))


def _local_maxima(
    plane: SphereProblem, arcs: _Arcs, at_ends: FloatArray, offset: FloatArray, peaks: FloatArray
) -> FloatArray:  # (at most _MAX_POINTS, 2)
    """Peaks inside arcs, and ends that are not below their neighbours and touch no arc with a peak."""
    has_peak = ~np.isnan(offset)
    inside = np.flatnonzero(has_peak)
    is_high = (at_ends >= np.roll(at_ends, 1)) & (at_ends >= np.roll(at_ends, -1))
    kinks = np.flatnonzero(is_high & ~has_peak & ~np.roll(has_peak, 1))
    angles = np.concatenate([arcs.begin[inside] + offset[inside], arcs.begin[kinks]])
    rough = np.concatenate([peaks[inside], at_ends[kinks]])
    if len(rough) > 8 * _MAX_POINTS:
        largest = np.sort(np.argpartition(-rough, 8 * _MAX_POINTS)[: 8 * _MAX_POINTS])
        angles = angles[largest]
    points = _on_circle(angles)
    return distinct_points(points, plane.values(points), _MAX_POINTS)
