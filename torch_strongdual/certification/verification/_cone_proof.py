r"""The two-layer dual norm of small rank by bisection of simplicial cones: vectorised, slow, and simple.

The surface of the cross-polytope, 2^r simplices, is cut into simplices with vertices :math:`v_1, \dots, v_r` that are dyadic
and therefore exact. A point of one is :math:`p = \sum a_k v_k`, :math:`a \ge 0`, :math:`\sum a_k = 1`. Since
:math:`w(p) = G'p + \sum_i l_i (x_i'p)_+` is homogeneous, :math:`\|w(p)\| \le U \|p\|` on all simplices proves the dual norm.

- Scalar parts :math:`s = \pm e'w`, e fixed: rows with a positive coefficient are bounded by their chord, the others by a line
  :math:`t\,x_i'p`, :math:`t \in [0, 1]`, below the ReLU: :math:`s(p) \le \sum_k a_k c_k = z'p` with :math:`V z = c`. So
  :math:`s(p) \le \|z\| \|p\|` and :math:`s(p) \le \max_k c_k`, while :math:`\|p\| \ge \min_k f'v_k` for every unit vector f.
- The rest of w perpendicular to e is an affine part, largest at a vertex, plus :math:`\sum_i l_i \epsilon_i` with
  :math:`0 \le \epsilon_i \le P N / (P + N)`, P and -N being the range of :math:`x_i'p`: the gap between chord and ReLU.

Rounding: each of these numbers is a sum of at most n + r + c terms, of size at most :math:`S = \sum_i \|l_i\| \|x_i\|_1 +
\|G\|_1`, evaluated with a few roundings each; ``_slack`` allows 16 times that.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.verification._feasibility import Feasibility

__all__ = ["cone_feasibility"]

FloatArray = NDArray[np.float64]

_MAX_RANK = 6
_METHOD = "bisection of simplicial cones"
_NUMBERS_AT_A_TIME = 400_000
_MAX_WAITING = 400_000


def cone_feasibility(
    rows: FloatArray,  # (n, r)
    duals: FloatArray,  # (n, c)
    slope: float,
    limit: float,
    deadline: Deadline,
) -> Feasibility:
    r"""Prove ``||Lam's(X u)|| <= limit`` on the unit ball, or find a u where it fails, before the deadline."""
    rank = rows.shape[1]
    if rank > _MAX_RANK:
        return Feasibility(holds=None, method=_METHOD, reason=f"Rank {rank} is out of reach of it ({_MAX_RANK} is not).")
    row_scale, dual_scale = (math.ldexp(1.0, math.frexp(float(np.abs(a).max()))[1]) for a in (rows, duals))
    rows, duals = rows / row_scale, duals / dual_scale  # powers of two: exact, but for entries that underflow
    linear = slope * (rows.T @ duals)
    target = limit / row_scale / dual_scale
    kinks = (1.0 - slope) * duals
    size = float(np.linalg.norm(duals, axis=1) @ np.abs(rows).sum(axis=1)) * (1.0 + 2.0 * abs(slope))
    slack = 16.0 * 2.0**-53 * (len(rows) + rank + duals.shape[1] + 16) * size + 1e-290
    search = _Search(rows, kinks, linear, target, slack)
    waiting = np.array([np.diag(signs) for signs in itertools.product((1.0, -1.0), repeat=rank)])
    batch = max(16, _NUMBERS_AT_A_TIME // (rank * len(rows)))
    while len(waiting):
        if search.highest > target + slack:
            return Feasibility(holds=False, method=_METHOD, reason="A unit branch was found whose value exceeds the limit.")
        if deadline.expired or len(waiting) > _MAX_WAITING:
            reason = "The time ran out." if deadline.expired else "It needs too many cones."
            return Feasibility(holds=None, method=_METHOD, reason=f"{reason} {len(waiting)} cones were left to prove.")
        open_cones = search.unproven(waiting[-batch:])
        halves = _halves(open_cones)
        if halves is None:
            return Feasibility(holds=None, method=_METHOD, reason="The bound is too close to the dual norm for float64.")
        waiting = np.concatenate([waiting[:-batch], halves])
    return Feasibility(holds=True, upper=limit, method=_METHOD)


def _halves(cones: FloatArray) -> FloatArray | None:  # (m, r, r) -> (2 m, r, r)
    """Cut every simplex at the middle of its longest edge; ``None`` if a middle is no longer exact."""
    if not len(cones):
        return cones
    edges = cones[:, :, None, :] - cones[:, None, :, :]
    lengths = np.einsum("mjkr,mjkr->mjk", edges, edges).reshape(len(cones), -1)
    first, second = np.unravel_index(lengths.argmax(axis=1), cones.shape[1:])
    numbers = np.arange(len(cones))
    ends = cones[numbers, first], cones[numbers, second]
    middle = 0.5 * (ends[0] + ends[1])
    if (2.0 * middle - ends[0] != ends[1]).any() or (2.0 * middle - ends[1] != ends[0]).any():
        return None
    left, right = cones.copy(), cones.copy()
    left[numbers, first], right[numbers, second] = middle, middle
    return np.concatenate([left, right])


class _Search:
    """Bounds on stacks of simplices, and the highest value met."""

    def __init__(self, rows: FloatArray, kinks: FloatArray, linear: FloatArray, target: float, slack: float) -> None:
        self.rows, self.kinks, self.linear, self.target, self.slack = rows, kinks, linear, target, slack
        self.highest = 0.0

    def unproven(self, cones: FloatArray) -> FloatArray:  # (m, r, r) -> (k, r, r)
        """Those simplices on which the target is not proven."""
        heights = cones @ self.rows.T  # (m, r, n)
        centres = cones.mean(axis=1)
        lengths = np.linalg.norm(centres, axis=1)
        images = centres @ self.linear + np.maximum(centres @ self.rows.T, 0.0) @ self.kinks  # (m, c)
        values = np.linalg.norm(images, axis=1)
        self.highest = max(self.highest, float((values / lengths).max()))
        ahead = np.divide(images, values[:, None], out=np.zeros_like(images), where=values[:, None] > 0)
        ahead[values == 0, 0] = 1.0
        ahead /= np.linalg.norm(ahead, axis=1)[:, None]
        nearest = np.einsum("mr,mkr->mk", centres / lengths[:, None], cones).min(axis=1) * (1.0 - 1e-14)
        along = np.maximum(
            self._scalar_bound(cones, heights, nearest, ahead), self._scalar_bound(cones, heights, nearest, -ahead)
        )
        across = (self._rest_bound(cones, heights, ahead) + self.slack) / nearest if images.shape[1] > 1 else 0.0
        bound = np.hypot(np.maximum(along, 0.0), across) * (1.0 + 1e-14)
        unproven: FloatArray = cones[~(bound <= self.target)]
        return unproven

    def _scalar_bound(self, cones: FloatArray, heights: FloatArray, nearest: FloatArray, ahead: FloatArray) -> FloatArray:
        """Upper bounds on ``e'w(p) / |p|``."""
        weights = ahead @ self.kinks.T  # (m, n)
        above, below = np.maximum(heights, 0.0), np.maximum(-heights, 0.0)
        up, down = above.sum(axis=1), below.sum(axis=1)
        line = np.divide(up, up + down, out=np.zeros_like(up), where=up + down > 0)  # 1 or 0 where the sign is settled
        base = np.einsum("mkr,rc,mc->mk", cones, self.linear, ahead)
        base += np.einsum("mkn,mn->mk", above, np.maximum(weights, 0.0))
        base += np.einsum("mkn,mn->mk", heights, np.minimum(weights, 0.0) * line)
        largest = (base.max(axis=1) + self.slack) / np.where(base.max(axis=1) + self.slack > 0, nearest, 1.0)
        normals = np.linalg.solve(cones, base[:, :, None])[:, :, 0]
        # Whatever the solver did: s(p) <= c'a <= z'p + max(c - V z) holds for every z.
        defect = np.maximum((base - np.einsum("mkr,mr->mk", cones, normals)).max(axis=1), 0.0)
        slope = np.linalg.norm(normals, axis=1) * (1.0 + 1e-14)
        rounding = self.slack + 1e-15 * len(self.linear) * slope
        tangent = slope + (defect + rounding) / nearest
        smaller: FloatArray = np.minimum(largest, tangent)
        return smaller

    def _rest_bound(self, cones: FloatArray, heights: FloatArray, ahead: FloatArray) -> FloatArray:
        """Upper bounds on the part of ``w(p)`` perpendicular to e."""
        affine = cones @ self.linear + np.maximum(heights, 0.0) @ self.kinks  # (m, k, c)
        affine -= np.einsum("mkc,mc,md->mkd", affine, ahead, ahead)
        highest, lowest = np.maximum(heights.max(axis=1), 0.0), np.maximum(-heights.min(axis=1), 0.0)
        total = highest + lowest
        gaps = np.divide(highest * lowest, total, out=np.zeros_like(total), where=total > 0)  # (m, n)
        along = ahead @ self.kinks.T
        squares = np.einsum("nc,nc->n", self.kinks, self.kinks)
        across = np.sqrt(np.maximum(squares - along * along, 0.0) + 1e-15 * squares)
        rest: FloatArray = np.linalg.norm(affine, axis=2).max(axis=1) + np.einsum("mn,mn->m", across, gaps)
        return rest
