"""Dual points between one that is easy to bound and one that is worth most, and how closely to bound them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from torch_strongdual.certification._dual.abstract_joint_candidate import JointSituation

__all__ = ["Mixtures", "Plan", "SearchCost"]

_SHARES = tuple(k / 20 for k in range(20, -1, -1))
_RTOLS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4)
_FIRST = 0.7  # tolerance of the first search, which shows what others will cost
_FIRST_BEYOND, _BEYOND = 0.3, 10  # the same beyond that rank, where looser bounds say nothing: a few boxes prove them
_FLAT = 0.2  # excess below which smaller ones hardly cost more
_FARTHEST = 30.0  # times what the longest search so far took: beyond, there is no telling
_FIRST_SHARE, _FIRST_SHARE_BEYOND = 0.5, 0.25  # of the time, for it: something has to follow
_LEAST_SHARE = 0.5  # of that of the nearest point searched: how fast costs grow towards the residual differs
_LEAST_LEFT = 0.3  # of what a search was expected to take, when it is gone on with


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """A box search worth its time.

    Args:
        point: To bound, shape ``(num_samples, 1)``.
        share: Of the settled point in it; the rest is the residual.
        rtol: Excess of the bound to prove over what is attained.
        value: What that would prove, about; ``-inf`` where nothing is known yet.
    """

    point: Tensor
    share: float
    rtol: float
    value: float = -math.inf


class SearchCost:
    """Seconds that a box search takes, learnt from those of the same data.

    ``log seconds = a - b log(rtol + 0.2) + c (1 - share)``, by least squares with what is usual: b from 1.7 to 3 and c from 2.1
    to 4.3 on diabetes, friedman1 and Gaussian data of rank nine and ten, a tenth of a second to one for the first search.
    Beyond that, a few more for each rank.

    Args:
        rank: Of the data.

    Example:
        >>> cost = SearchCost()
        >>> before = cost.cautious(share=0.5, rtol=0.01)
        >>> cost.learn(share=1.0, rtol=0.5, seconds=0.05)
        >>> cost.cautious(share=0.5, rtol=0.01) < before
        True
    """

    _USUAL, _SPREAD = (math.log(0.25), 2.0, 3.3), (1.0, 0.4, 0.8)
    _MORE = (0.65, 0.45, 0.0)  # for each rank beyond ten
    _NOISE, _CAUTION = 0.15, 0.6

    def __init__(self, rank: int = _BEYOND) -> None:
        self._mean = np.array(self._USUAL) + max(rank - _BEYOND, 0) * np.array(self._MORE)
        self._precision = np.diag([1.0 / spread**2 for spread in self._SPREAD])

    def learn(self, *, share: float, rtol: float, seconds: float) -> None:
        """Take over how long a search took."""
        at = self._features(share, rtol)
        gain = np.linalg.solve(self._precision + np.outer(at, at) / self._NOISE**2, at) / self._NOISE**2
        self._mean = self._mean + gain * (math.log(max(seconds, 1e-3)) - float(at @ self._mean))
        self._precision = self._precision + np.outer(at, at) / self._NOISE**2

    def cautious(self, *, share: float, rtol: float) -> float:
        """Seconds that are mostly enough."""
        at = self._features(share, rtol)
        spread = math.sqrt(float(at @ np.linalg.solve(self._precision, at)))
        return math.exp(float(at @ self._mean) + self._CAUTION * spread)

    @staticmethod
    def _features(share: float, rtol: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array([1.0, -math.log((rtol + _FLAT) / (_FIRST + _FLAT)), 1.0 - share])


class Mixtures:
    """Which points between a settled joint dual point and a residual to bound next, and how closely.

    The settled point was chosen for a relaxation that is looser than boxes: they often bound it far below the limit, and in
    little time. The residual would be best if its dual norm were known, but is the hardest to bound. In between, what is
    proven gets better and takes longer. So does a closer bound of one point; and a search that ends for want of time proves
    little. The first search, a coarse one, is cheap and shows what others will cost; then comes whatever proves most in the
    time left, as far as that can be foreseen, or, if something is enough, what is so first.

    Args:
        value_along: Of a point, what bounds on its dual norm prove, for effort only.
        limit: Dual norm of feasible points.
        rank: Of the data.
    """

    def __init__(self, value_along: Callable[[Tensor], Callable[[float], float]], limit: float, *, rank: int = _BEYOND) -> None:
        self._value_along, self._limit = value_along, limit
        self._first, self._first_share = _FIRST, _FIRST_SHARE
        if rank > _BEYOND:
            self._first, self._first_share = _FIRST_BEYOND, _FIRST_SHARE_BEYOND
        self._cost = SearchCost(rank)
        self._norms: dict[float, float] = {}  # attained, by share; of points searched, and of the residual
        self._proven: dict[float, float] = {}  # excess of the bound proven, by share
        self._unfinished: tuple[Plan, float] | None = None  # and the seconds it had
        self._longest = 0.0  # seconds, of all searches

    def next_plan(self, settled: Tensor, situation: JointSituation, *, seconds: float) -> Plan | None:
        """The search to begin, or to go on with; ``None`` if there is no time for any.

        Args:
            settled: The settled point.
            situation: The residual, and what would be enough.
            seconds: That there are.
        """
        if 1.0 not in self._norms:
            is_affordable = self._cost.cautious(share=1.0, rtol=self._first) <= self._first_share * seconds
            return Plan(point=settled, share=1.0, rtol=self._first) if is_affordable else None
        self._norms[0.0] = situation.near_norm or self._limit  # a trained network's residual attains about the limit
        enough = self._value_along(situation.near)(situation.sufficient(situation.near))
        best = -math.inf, -math.inf
        chosen = None
        for plan, cost in self._affordable(situation.near, settled, min(seconds, _FARTHEST * self._longest)):
            merit = (1.0, -cost) if plan.value >= enough else (0.0, plan.value)
            if merit > best:
                best, chosen = merit, plan
        return chosen

    def learn(self, plan: Plan, *, upper: float, lower: float, seconds: float, is_met: bool) -> None:
        """What a search proved, and how long it took.

        Args:
            plan: It was for.
            upper: Proven.
            lower: Attained.
            seconds: Spent.
            is_met: Whether it came to its end.
        """
        before = self._unfinished
        if before is not None and before[0].point is plan.point:
            seconds += before[1]
        self._unfinished = None if is_met else (plan, seconds)
        self._longest = max(self._longest, seconds)
        self._norms[plan.share] = lower if lower > 0.0 else self._limit
        reached = upper / lower - 1.0 if lower > 0.0 else math.inf
        if is_met:
            self._proven[plan.share] = min(plan.rtol, self._proven.get(plan.share, math.inf))
        if is_met and reached <= plan.rtol + 1e-6:
            self._cost.learn(share=plan.share, rtol=plan.rtol, seconds=seconds)
        elif not is_met:  # a larger bound, mostly: less was needed for it
            rtol, factor = (reached, 1.0) if reached < 2.0 * _FIRST else (plan.rtol, 2.0)
            self._cost.learn(share=plan.share, rtol=max(rtol, plan.rtol), seconds=factor * seconds)

    def _affordable(self, near: Tensor, settled: Tensor, seconds: float) -> Iterator[tuple[Plan, float]]:
        """Searches that there is time for, and their seconds."""
        if self._unfinished is not None:
            plan, spent = self._unfinished
            rtols = [plan.rtol, *(rtol for rtol in _RTOLS if rtol > plan.rtol)]
            yield from self._at(lambda: plan.point, plan.share, rtols, seconds=seconds, spent=spent)
        least = _LEAST_SHARE * min(share for share in self._norms if share > 0.0)
        for share in (share for share in _SHARES if share >= least):  # at the ends exactly these
            yield from self._at(partial(torch.lerp, near, settled, share), share, _RTOLS, seconds=seconds)

    def _at(
        self, point_of: Callable[[], Tensor], share: float, rtols: Sequence[float], *, seconds: float, spent: float = 0.0
    ) -> Iterator[tuple[Plan, float]]:
        """Searches of one point; ``spent`` seconds of them are over."""
        costs = [(rtol, self._cost.cautious(share=share, rtol=rtol)) for rtol in rtols]
        left = [(rtol, max(whole - spent, _LEAST_LEFT * whole)) for rtol, whole in costs]
        known = self._proven.get(share, math.inf)
        affordable = [(rtol, cost) for rtol, cost in left if cost <= seconds and rtol < known]
        if not affordable:
            return
        point = point_of()
        value_of = self._value_along(point)
        shares = sorted(self._norms)
        norm = float(np.interp(share, shares, [self._norms[other] for other in shares]))  # convex, hence at most this
        for rtol, cost in affordable:
            yield Plan(point=point, share=share, rtol=rtol, value=value_of((1.0 + rtol) * norm)), cost
