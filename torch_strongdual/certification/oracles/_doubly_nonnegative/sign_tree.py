"""Best-first search over signs of samples, each node bounded by a doubly nonnegative relaxation."""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._doubly_nonnegative.abstract_ascent import AbstractAscent, AbstractAscentPoint
from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift
from torch_strongdual.certification.oracles._doubly_nonnegative.low_rank_ascent import LowRankAscent
from torch_strongdual.certification.oracles._doubly_nonnegative.splitting import Splitting
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.local_ascent import local_maxima

__all__ = ["SignTree"]

FloatArray = NDArray[np.float64]

_MAX_ROUNDS = 150  # in one node, each with a proven bound
_NOTHING = 1e-10  # a maximum of zero is not proven more closely than this
_PROOF_SECONDS = 4e-10  # for the first bound, times the cube of the number of samples
_POINTS = 16
_ACCURACY = "accuracy of the solver of the relaxation"
_MEMORY = 5e8  # bytes for the starting points of open nodes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Node:
    """A part of the sphere with its proven upper bound.

    Args:
        upper: Proven there.
        lift: Which part.
        sample: The one to split at; -1 for none.
        start: Where its solver stopped; ``None`` if that was not kept.
        is_solved: Whether its solver has done what it can, so that only a split helps.
    """

    upper: float
    lift: Lift
    sample: int = -1
    start: AbstractAscentPoint | None = None
    is_solved: bool = False


class SignTree:
    """The search on one problem: :meth:`run` goes on until a request is met, and can be called again after :meth:`ask`.

    Args:
        lift: The whole sphere, in units in which its weights are about one.
        request: When to stop, in the same units.
        points: Unit vectors with good values, best first, shape (m, r).
        upper: Proven beforehand.
        max_nodes: Solve no more relaxations than this; 1 for no splitting.
        device: Where the relaxations are solved.
        is_low_rank: Whether by a low-rank factor on the CPU, instead of by eigendecompositions.
    """

    def __init__(
        self,
        lift: Lift,
        request: BoundRequest,
        points: FloatArray,
        *,
        upper: float,
        max_nodes: int | None,
        device: torch.device,
        is_low_rank: bool,
    ) -> None:
        self._problem = lift.problem
        self._request, self._max_nodes, self._device = request, max_nodes, device
        self._is_low_rank = is_low_rank
        self._open: list[tuple[float, int, _Node]] = []
        self._pushed = 0
        self._closed = -np.inf  # largest bound of a part that cannot be split
        self._root_start: AbstractAscentPoint | None = None
        self._bound_seconds = _PROOF_SECONDS * lift.num_rows**3
        self.points = points
        self.nodes, self.iterations = 0, 0
        self.limited_by = _ACCURACY
        self._push(_Node(upper=upper, lift=lift))

    def ask(self, request: BoundRequest, points: FloatArray) -> None:
        """Go on with another request.

        Args:
            request: In the units of the tree.
            points: Unit vectors that may have better values, shape (m, r).
        """
        self._request, self.limited_by = request, _ACCURACY
        self._keep(points)

    @property
    def lower(self) -> float:
        """Best value attained."""
        return float(np.max(self._problem.values(self.points[:1]), initial=0.0)) if len(self.points) else 0.0

    @property
    def upper(self) -> float:
        """Proven for the whole sphere, never negative."""
        return max(0.0, self._closed, -self._open[0][0] if self._open else 0.0)

    def run(self) -> None:
        """Search until the request is met, or until what ``limited_by`` then names."""
        while self._open and not self.is_done():
            if self._must_stop() or self._closed >= -self._open[0][0]:
                return
            node = heapq.heappop(self._open)[2]
            if node.is_solved:
                self._split(node)
            else:
                self._push(self._solve(node.lift, node.start or self._root_start, node.upper))

    def _split(self, node: _Node) -> None:
        """Replace a node by its two halves; a half that there is no time for keeps the bound of the whole."""
        for sign in (1, -1):
            half = _Node(upper=node.upper, lift=node.lift.with_sign(node.sample, sign), start=node.start)
            if not (self._is_refuted() or self._must_stop()):
                half = self._solve(half.lift, half.start or self._root_start, half.upper)
            self._push(half)

    def _push(self, node: _Node) -> None:
        if node.is_solved and node.sample < 0:
            self._closed = max(self._closed, node.upper)
        else:
            self._pushed += 1
            heapq.heappush(self._open, (-node.upper, self._pushed, node))

    @property
    def _goal(self) -> float:
        """A bound that would satisfy the caller."""
        return max(_NOTHING, self._request.floor, self._request.target or 0.0, (1.0 + self._request.rtol) * self.lower)

    def is_done(self) -> bool:
        """Whether the bounds answer the request."""
        return self.upper <= _NOTHING or self._request.is_met(self.upper, self.lower)

    def _is_refuted(self) -> bool:
        """Whether a counterexample to the caller's target is known, which is all that was asked."""
        target = self._request.target
        return target is not None and self.lower > (1.0 + self._request.rtol) * target

    def _must_stop(self) -> bool:
        if self._is_late():
            self.limited_by = "time"
        elif self._max_nodes is not None and self.nodes >= self._max_nodes:
            self.limited_by = "max_nodes"
        else:
            return False
        return True

    def _solve(self, lift: Lift, start: AbstractAscentPoint | None, ceiling: float) -> _Node:
        """Bound one part of the sphere, which is known to be at most ``ceiling``."""
        self.nodes += 1
        ascent, upper = self._ascent(lift, start), ceiling
        for _ in range(_MAX_ROUNDS):
            if not ascent.advance(self._is_late):
                break
            upper = min(upper, self._bound(ascent))
            self._learn(lift.direction(ascent.means))
            if self._is_settled(lift, ascent, upper):
                break
        self.iterations += ascent.iterations
        return self._node(lift, upper, ascent)

    def _ascent(self, lift: Lift, start: AbstractAscentPoint | None) -> AbstractAscent:
        if start is not None:
            return start.ascent(lift)
        return LowRankAscent(lift) if self._is_low_rank else Splitting(lift, device=self._device)

    def _is_late(self) -> bool:
        """Whether the time left is needed for the last bound."""
        return self._request.deadline.remaining <= self._bound_seconds

    def _bound(self, ascent: AbstractAscent) -> float:
        begin = time.perf_counter()
        upper = ascent.upper()
        self._bound_seconds = time.perf_counter() - begin
        return upper

    def _is_settled(self, lift: Lift, ascent: AbstractAscent, upper: float) -> bool:
        """Whether more iterations are of no use."""
        if upper <= self._goal or self._is_refuted():
            return True
        splittable = (lift.signs == 0).any() and (self._max_nodes is None or self.nodes < self._max_nodes)
        return ascent.is_settled(upper, self._goal, is_final=not splittable)

    def _node(self, lift: Lift, upper: float, ascent: AbstractAscent) -> _Node:
        """What is kept of a solved part."""
        sample = lift.sample_to_split(ascent.means)
        start = ascent.point
        if self._root_start is None:
            self._root_start = start
        elif len(self._open) * 16 * lift.length**2 > _MEMORY:
            start = self._root_start
        is_solved = not (self._is_late() or self._is_refuted())
        return _Node(upper=upper, lift=lift, sample=sample, start=start, is_solved=is_solved)

    def _learn(self, direction: FloatArray) -> None:
        """Climb from where the relaxation has its mean, if that beats what is known."""
        norm = float(np.linalg.norm(direction))
        if not norm > 0.0:
            return
        point = direction[None] / norm
        if float(self._problem.values(point)[0]) > self.lower * (1.0 + 1e-9):
            self._keep(np.concatenate([point, local_maxima(self._problem, point, num_starts=0)]))

    def _keep(self, points: FloatArray) -> None:
        """Remember the best of these and of those known."""
        points = np.concatenate([points, self.points])
        self.points = points[np.argsort(-self._problem.values(points), kind="stable")][:_POINTS]
