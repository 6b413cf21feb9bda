"""More accurate multipliers for the parts of the sphere whose bounds are the largest, the dual point staying as it is."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.oracles._doubly_nonnegative.abstract_ascent import AbstractAscent, AbstractAscentPoint
from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift
from torch_strongdual.certification.oracles._doubly_nonnegative.low_rank_ascent import LowRankPoint
from torch_strongdual.certification.oracles._doubly_nonnegative.product_multipliers import ProductMultipliers
from torch_strongdual.certification.oracles._doubly_nonnegative.splitting import SplittingPoint

__all__ = ["LeafPolish", "PolishedLeaf"]

FloatArray = NDArray[np.float64]

_FIRST_PENALTY = 0.05  # less than a start from nothing has: these multipliers are better than the moments
_TIGHT = 5e-4  # a bound this close to what is attained is good enough, relatively
_WEIGHT, _WEIGHT_OF_ONE = 20.0, 10.0  # of the penalty of low-rank factors, for several outputs and for one
_PATIENCE, _LITTLE = 4, 1e-3  # so many rounds of one part that lower its bound by less than this, relatively


class PolishedLeaf:
    """A part of the sphere with the best that is proven of it.

    Args:
        lift: In units in which its weights have norm about one.
        upper: Proven, in these units.
        start: What to go on from; ``None`` where that is not possible.
    """

    def __init__(self, lift: Lift, upper: float, start: AbstractAscentPoint | None = None) -> None:
        self.upper, self.attained = upper, 0.0
        self._lift, self._start = lift, start
        self._ascent: AbstractAscent | None = None
        self._uppers = [upper]

    @classmethod
    def of(cls, lift: Lift, upper: float, multipliers: FloatArray, moments: Tensor) -> PolishedLeaf:
        """Start from multipliers, in the units of ``lift``, and moments of any size, shape (1 + r + 2 n, 1 + r + 2 n) each."""
        size = float(moments[0, 0])
        if not size > 0.0:
            return cls(lift, upper)
        prices = torch.from_numpy(-multipliers - lift.objective).to(moments.device)
        return cls(lift, upper, SplittingPoint(moments=moments / size, prices=prices, penalty=_FIRST_PENALTY))

    @classmethod
    def of_factor(cls, lift: Lift, upper: float, multipliers: ProductMultipliers, factor: FloatArray) -> PolishedLeaf:
        """Start from multipliers in the units of ``lift``, and a factor of moments of any size.

        Of several outputs, which may be in other coordinates there, the factor has no rows: what suits them follows from the
        rest.

        Args:
            lift: With a bilinear part where there are several outputs.
            upper: Proven.
            multipliers: Without cones if there are several outputs.
            factor: Rows of inputs, then of open entries, shape (r + n, k), or (r - c + n, k) for c outputs.
        """
        inputs, opened = factor[: -lift.num_rows], factor[-lift.num_rows :]
        size = float(np.linalg.norm(inputs)) * (1.0 if lift.bilinear is None else 2.0**0.5)
        if not size > 0.0:
            return cls(lift, upper)
        if lift.bilinear is None:
            return cls(lift, upper, LowRankPoint(factor=factor / size, multipliers=multipliers, weight=_WEIGHT_OF_ONE))
        inputs, opened = inputs / size, opened / size
        number = len(lift.bilinear)
        tilt, signs = lift.rows[:number, : len(inputs)] @ inputs, lift.signs[:number, None]
        outputs = lift.bilinear.T @ np.where(signs == 0, 0.5 * (opened[:number] + tilt), np.where(signs > 0, tilt, 0.0))
        outputs *= 0.5**0.5 / max(float(np.linalg.norm(outputs)), 1e-300)
        start = LowRankPoint(factor=np.concatenate([inputs, outputs, opened]), multipliers=multipliers, weight=_WEIGHT)
        return cls(lift, upper, start)

    def advance(self, is_over: Callable[[], bool]) -> bool:
        """A round of iterations and the bound that follows; ``False`` where nothing more can be hoped for."""
        if self._start is None or self._is_slow():
            return False
        if self._ascent is None:
            self._ascent = self._start.ascent(self._lift)
        if not self._ascent.advance(is_over):
            return False
        self.upper = min(self.upper, self._ascent.upper())
        self._uppers.append(self.upper)
        self._learn(self._lift.direction(self._ascent.means))
        return True

    def _learn(self, direction: FloatArray) -> None:
        """The value where the relaxation has its mean: no bound can be below it (used for effort only)."""
        norm = float(np.linalg.norm(direction))
        if norm > 0.0:
            self.attained = max(self.attained, float(self._lift.problem.values(direction[None] / norm)[0]))

    def _is_slow(self) -> bool:
        return len(self._uppers) > _PATIENCE and self._uppers[-1] > (1.0 - _LITTLE) * self._uppers[-1 - _PATIENCE]

    def halves(self) -> list[PolishedLeaf]:
        """The two parts after a split at the sign of a sample; none where that is not possible."""
        sample = -1 if self._ascent is None else self._lift.sample_to_split(self._ascent.means)
        if self._ascent is None or sample < 0:
            return []
        return [PolishedLeaf(self._lift.with_sign(sample, sign), self.upper, self._ascent.point) for sign in (1, -1)]


class LeafPolish:
    """Works on whichever part has the largest bound, for only that one matters.

    Once split, all parts are iterated upon together while the dual point moves, and the bounds of a few lag behind the others.
    A part whose bound does not come down any more is split again.

    Args:
        leaves: All parts.
    """

    def __init__(self, leaves: Sequence[PolishedLeaf]) -> None:
        self._queue: list[tuple[float, int, PolishedLeaf]] = []
        self._pushed, self._attained = 0, 0.0
        for leaf in leaves:
            self._push(leaf)

    def _push(self, leaf: PolishedLeaf) -> None:
        self._pushed += 1
        heapq.heappush(self._queue, (-leaf.upper, self._pushed, leaf))

    @property
    def upper(self) -> float:
        """The largest bound; zero without parts."""
        return max(0.0, -self._queue[0][0]) if self._queue else 0.0

    def run(self, goal: float, is_over: Callable[[], bool]) -> None:
        """Go on until all bounds are at most ``goal``, until the largest cannot be lowered, or until time ``is_over``."""
        while self.upper > max(goal, (1.0 + _TIGHT) * self._attained) and not is_over():
            leaf = self._queue[0][2]
            found = [leaf] if leaf.advance(is_over) else leaf.halves()
            self._attained = max(self._attained, leaf.attained)
            if not found:
                return
            heapq.heappop(self._queue)
            for part in found:
                self._push(part)
