"""What every box search does with its forest of cells: try the goal, come down a ladder of targets, learn from witnesses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._boxes.forest import Forest, Progress
from torch_strongdual.certification.oracles._boxes.unfinished import UnfinishedSearches
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.local_ascent import local_maxima
from torch_strongdual.certification.oracles.row_space import UNIT_ROUNDOFF
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem

__all__ = ["OVERDRAFT", "BoxSearch", "ForestFactory"]

FloatArray = NDArray[np.float64]

_GRAM_ROWS = 2000, 30  # up to here, and so many a coordinate, the Gram matrix of the rows is cheap beside the search

#: Ratios to what is attained that are tried in turn when the goal is out of reach in one go.
_LADDER = (8.0, 3.0, 1.8, 1.3, 1.1, 1.03, 1.01, 1.003, 1.001)

#: Cells grow like a power of one over the excess of the bound over what is attained: least and largest exponent reckoned with.
_EXPONENTS = 1.0, 2.5
_COST_EXPONENT = 0.75  # near the goal

#: Time over what is left that a search may be expected to take: towards its end it goes on with a somewhat larger bound, which
#: is closer to the goal than the next rung of the ladder.
OVERDRAFT = 1.5
_DOUBT = 2.0

_PATIENCE = 0.6  # share of the cells allowed before a search may be hurried
_SHARE = 0.7  # of the cells left, planned for
_TOLERATED = 1.1  # the pace is apt to rise towards the end
_MAX_RAISE = 1.3  # of the excess, at first: the pace is known better after the next rounds
_FLAT = 0.1  # excess below which smaller ones hardly cost more, at the ranks that are searched without a ladder
_FEWEST = 0.07  # share of the cells allowed that shows a pace
_SLOW_PACE = 1e-4  # seconds a cell, until it is measured
_TELLING = 2_000  # cells of a search that show what smaller bounds will cost
_MAX_ATTEMPTS = 12  # a goal may move up with the attained value, or be missed by a hair where the search stalled


#: Makes the forest of a problem; called with whether the search may be over in a moment.
ForestFactory = Callable[[SphereProblem, bool], Forest]


def _without_idle_rows(problem: SphereProblem) -> SphereProblem:
    """The same problem, in C layout, without rows that add nothing."""
    weight = np.linalg.norm(problem.duals, axis=1) * np.linalg.norm(problem.rows, axis=1)
    return SphereProblem(
        rows=np.ascontiguousarray(problem.rows[weight > 0]),
        duals=np.ascontiguousarray(problem.duals[weight > 0]),
        linear=np.ascontiguousarray(problem.linear),
        one_sided=problem.one_sided,
    )


def _crude_upper(problem: SphereProblem) -> float:
    """A bound that needs no search: exact where nothing is positive or rows are orthogonal."""
    if problem.one_sided and not problem.linear.any() and not (problem.duals > 0).any():
        return 0.0
    duals = np.maximum(problem.duals, 0.0) if problem.one_sided else problem.duals
    # ||Lam' (X u)_+|| <= ||Lam||_F ||X||_F and <= sum_i |Lam_i| |x_i|
    row_norms = np.linalg.norm(problem.rows, axis=1)
    relu = min(
        float(np.linalg.norm(duals)) * float(np.linalg.norm(row_norms)), float(np.linalg.norm(duals, axis=1) @ row_norms)
    )
    if problem.one_sided and problem.num_rows <= min(_GRAM_ROWS[0], _GRAM_ROWS[1] * problem.rank):
        # With d_i in {0, 1}: sum_i lam_i (x_i'u)_+ <= ||sum_i d_i lam_i x_i||, and the square is a sum over pairs of rows.
        weighted = duals * problem.rows
        squared = float(np.maximum(weighted @ weighted.T, 0.0).sum())
        # gamma_{r + n^2} of the sum, gamma_{r + 2} |w_i| |w_j| of each inner product
        squared += 2.0 * UNIT_ROUNDOFF * (problem.num_rows**2 + problem.rank + 8) * squared
        squared += 4.0 * UNIT_ROUNDOFF * (problem.rank + 8) * float(np.linalg.norm(weighted, axis=1).sum()) ** 2
        relu = min(relu, math.sqrt(squared))
    allowance = 1.0 + 4.0 * (problem.rows.size + problem.duals.size + 16) * UNIT_ROUNDOFF
    return (relu + float(np.linalg.norm(problem.linear))) * allowance


def _missing_cells(cells: int, fraction: float) -> float:
    """Estimate of the cells that a search still needs, having proven ``fraction`` of the surface with ``cells``.

    What is proven first may well be what is easy: below a half, the estimate is multiplied.
    """
    if not fraction > 0.0:
        return math.inf
    return (1.0 if fraction >= 0.5 else _DOUBT) * cells * (1.0 - fraction) / fraction


@dataclass(slots=True, kw_only=True)
class _Attempt:
    """Watches the pace of one search for one bound.

    Args:
        start: Cells examined before it, by all searches.
        fraction: Of the surface, proven before it.
    """

    start: int
    fraction: float
    _marks: list[tuple[int, float]] = field(default_factory=list)
    _most: float = _MAX_RAISE

    def excess_factor(self, cells: int, fraction: float, left: float) -> float:
        """What to multiply the bound's excess over the attained value by, so that the search ends in time; 1 if it will.

        Args:
            cells: Examined by now, by all searches.
            fraction: Of the surface, proven by now.
            left: Cells that may still be examined.
        """
        self._marks.append((cells, fraction))
        spent = cells - self.start
        allowed = spent + left  # the cells left are known ever better: at first there is no telling how long one takes
        if spent < _PATIENCE * allowed:
            return 1.0
        # The latest third shows the pace: what comes first is harder. What was done for a smaller bound does not count.
        if cells - self._marks[0][0] < _FEWEST * allowed:
            return 1.0
        earlier = [mark for mark in self._marks if mark[0] <= cells - max(spent / 3, _FEWEST * allowed)]
        since = earlier[-1] if earlier else self._marks[0]
        pace = max(fraction - since[1], 1e-12) / max(cells - since[0], 1)
        missing = (1.0 - fraction) / pace / max(left, 1.0)
        if missing <= _TOLERATED:
            return 1.0
        self._marks = self._marks[-1:]
        factor = min(math.pow(missing, 1.0 / _COST_EXPONENT), self._most)
        self._most *= _MAX_RAISE  # the last raise was too small
        return factor


@dataclass(slots=True, kw_only=True)
class BoxSearch:
    """The search of one problem: what is proven, what is attained, and how the two approach each other.

    Args:
        problem: As given to :meth:`AbstractTwoLayerOracle.maximise`.
        request: When to stop.
        points: Unit vectors with good values, best first, shape (m, rank).
        plant: Makes a forest.
        max_cells: Stop after this many cells; ``None`` for no limit but the deadline.
        progress: Called after every round with the fraction of the surface proven and the bound it is proven for.
        short_search: Cells spent on the goal itself before coming down the ladder.
        unfinished: Where searches are kept that ran out of time, and looked for.
        resumes_short: Whether a short search can go on as a long one: not if it uses fewer threads.
        comes_down: Whether to come down a ladder of bounds where the goal seems out of reach; otherwise it is tried at once.
    """

    problem: SphereProblem
    request: BoundRequest
    points: FloatArray
    plant: ForestFactory
    max_cells: int | None = None
    progress: Callable[[float, float], None] | None = None
    short_search: int = 20_000
    unfinished: UnfinishedSearches = field(default_factory=UnfinishedSearches)
    resumes_short: bool = True
    comes_down: bool = True
    cells: int = 0
    limited_by: str = "time"
    upper: float = field(init=False)  # proven
    lower: float = field(init=False)  # best value attained
    _pace: float = field(init=False)  # seconds a cell, measured as the search goes
    _fraction: float = 0.0  # of the surface, proven in the latest attempt
    _proven: list[tuple[float, int]] = field(default_factory=list)  # excess of bounds over what is attained, and their cells
    _attempts: int = 0
    _least_goal: float = field(init=False)

    def __post_init__(self) -> None:
        self.problem = _without_idle_rows(self.problem)
        self.upper = min(_crude_upper(self.problem), self.request.known_upper, self.unfinished.proven(self.problem))
        self.lower = float(np.max(self.problem.values(self.points), initial=0.0)) if len(self.points) else 0.0
        self._least_goal = max(self.request.floor, self.request.target or 0.0, 1e-9 * self.problem.magnitude())
        self._pace = self.unfinished.pace(self.problem, _SLOW_PACE)

    def bound(self) -> SphereBound:
        """Prove ever smaller bounds until the request is met."""
        self._run()
        stats: dict[str, float | str] = {"cells": float(self.cells)}
        if not self.request.is_met(self.upper, self.lower):
            stats["limited_by"] = self.limited_by
        return SphereBound(upper=self.upper, lower=self.lower, points=self.points, stats=stats)

    def seconds_to_goal(self) -> float:
        """Estimate of the time that :meth:`bound` will take, by the share of the surface that a short search proves.

        Infinite where that shows nothing. What was searched is kept in ``unfinished``: another search of the same problem goes
        on with it, or knows that it is over.
        """
        begin = self.request.deadline.elapsed
        if self.upper <= self.goal or self._is_refuted() or self._prove(self.goal, budget=self.short_search, is_short=True):
            return 0.0
        if not (self.cells and self._fraction > 0.0):
            return math.inf
        seconds_per_cell = (self.request.deadline.elapsed - begin) / self.cells
        forest = self.unfinished.peek(self.problem, self.goal)
        cells = self.cells if forest is None else max(self.cells, forest.cells)
        return seconds_per_cell * _missing_cells(cells, self._fraction)

    @property
    def goal(self) -> float:
        """The bound that would satisfy the caller, never below what is attained."""
        return max(self._least_goal, (1.0 + max(self.request.rtol, 1e-10)) * self.lower)

    def _run(self) -> None:
        """Try the goal at once; if that takes too long, come down a ladder of targets."""
        if self.upper <= self.goal or self._is_refuted():
            return
        is_new = not math.isfinite(self.request.known_upper)
        if self.comes_down and is_new and self._prove(self.goal, budget=self.short_search, is_short=True):
            return
        # Every rung of the ladder costs about as much as the goal: skip them if the goal seems within reach.
        if not self.comes_down or self._seems_affordable():
            self._prove(self.goal)  # or somewhat more, if that takes too long
        while not self._out_of_budget() and not self._is_refuted():
            if (target := self._next_target()) is None or not self._prove(target):
                return

    def _next_target(self) -> float | None:
        """The smallest rung that the cells of earlier ones promise to be affordable, or the next one; ``None`` at the goal."""
        if self.upper <= self.goal or self._attempts > _MAX_ATTEMPTS:
            return None
        self._attempts += 1
        rungs = [ratio * self.lower for ratio in _LADDER if self.goal < ratio * self.lower < self.upper]
        rungs.append(self.goal)
        if len(self._proven) < 2 or self._proven[-1][1] < _TELLING or not self.lower:
            return rungs[0]
        (excess_before, cells_before), (excess, cells) = self._proven[-2:]
        exponent = math.log(max(cells / cells_before, 1.1)) / math.log(max(excess_before / max(excess, 1e-10), 1.1))
        exponent = min(max(exponent, _EXPONENTS[0]), _EXPONENTS[1])
        cost = [cells * (excess / max(rung / self.lower - 1.0, 1e-10)) ** exponent for rung in rungs]
        affordable = [rung for rung, price in zip(rungs, cost, strict=True) if price <= _SHARE * self._cells_left()]
        return min(affordable, default=rungs[0])

    def _is_refuted(self) -> bool:
        """Whether a counterexample to the caller's target is known, which is all that was asked."""
        target = self.request.target
        return target is not None and self.lower > (1.0 + self.request.rtol) * target

    def _out_of_budget(self) -> bool:
        if self.max_cells is not None and self.cells >= self.max_cells:
            self.limited_by = "max_cells"
            return True
        return self.request.deadline.expired

    def _cells_left(self) -> float:
        """Cells that may still be examined, by the pace so far if time is what limits them."""
        if self.max_cells is not None:
            return float(self.max_cells - self.cells)
        return self.request.deadline.remaining / self._pace

    def _seems_affordable(self) -> bool:
        """Whether the share of the goal proven so far, by this or by an earlier search, promises the rest."""
        cells, fraction = self.cells, self._fraction
        if (forest := self.unfinished.peek(self.problem, self.goal)) is not None:
            cells, fraction = forest.cells, forest.proven_fraction
        return cells > 0 and _missing_cells(cells, fraction) <= OVERDRAFT * self._cells_left()

    def _prove(self, bound: float, budget: int | None = None, *, is_short: bool = False) -> bool:
        """Search until ``bound`` (or a larger one, if counterexamples, stalls or time raise it) is proven.

        Cells proven for a bound are proven for every larger one: a search that is too slow goes on with a larger bound instead
        of being given up, and ends in time with all its cells put to use.
        """
        forest = self.unfinished.take(self.problem, bound) or self.plant(self.problem, is_short)
        self._fraction = forest.proven_fraction
        attempt = _Attempt(start=self.cells, fraction=forest.proven_fraction)
        most = math.inf if budget is None else self.cells + budget
        lift, was_raised = 1e-7, False
        while not self._out_of_budget() and self.cells < most and bound < self.upper:
            progress = self._advance(forest, bound)
            if progress.is_proven:
                self.upper = min(self.upper, bound)
                self.unfinished.remember(self.problem, self.upper)
                if self.lower:
                    self._proven.append((bound / self.lower - 1.0, self.cells - attempt.start))
                return True
            for point in progress.witnesses:
                self._learn(point)
            if progress.witnesses and self._is_refuted():
                return True
            if progress.witnesses:
                bound = max(bound, self.goal)
            if progress.is_stalled:
                bound, lift = bound * (1.0 + lift), 4.0 * lift
            if budget is None and (factor := attempt.excess_factor(self.cells, self._fraction, self._cells_left())) > 1.0:
                if not was_raised:
                    self.unfinished.keep(self.problem, bound, forest.copy())
                least = 1e-3 if self.comes_down else _FLAT
                raised = bound + (factor - 1.0) * max(bound - self.lower, least * self.lower)
                worth = 0.9 * self.upper + 0.1 * self.lower if math.isfinite(self.upper) else math.inf
                bound, was_raised = max(bound, min(raised, worth)), True
        if not was_raised and (self.resumes_short or not is_short):
            self.unfinished.keep(self.problem, bound, forest)
        return False

    def _advance(self, forest: Forest, bound: float) -> Progress:
        """One round of about a tenth of a second, since compiled code cannot be interrupted."""
        chunk = max(16, min(int(0.1 / self._pace), 1_000_000))
        if self.max_cells is not None:
            chunk = min(2_000, self.max_cells - self.cells)  # of fixed size, so that the answer can be repeated
        if self.cells == 0:
            chunk = min(chunk, 64)
        before, begin = forest.cells, self.request.deadline.elapsed
        # 64 u less: the unit vectors of the vector bound, and the comparison with bound * ||p||, are rounded too.
        progress = forest.advance(bound * (1.0 - 64 * UNIT_ROUNDOFF), chunk)
        done = max(forest.cells - before, 1)
        if self.cells:
            self._pace = 0.5 * self._pace + 0.5 * (self.request.deadline.elapsed - begin) / done
            self.unfinished.note_pace(self.problem, self._pace)
        self.cells += forest.cells - before
        self._fraction = forest.proven_fraction
        if self.progress is not None:
            self.progress(forest.proven_fraction, bound)
        return progress

    def _learn(self, point: FloatArray) -> None:
        """Climb from a point the search found, and keep the maximum it leads to."""
        found = local_maxima(self.problem, point[None], num_starts=0)
        points = np.concatenate([point[None], found, self.points])
        values = self.problem.values(points)
        self.points = points[np.argsort(-values, kind="stable")][:16]
        self.lower = max(0.0, float(values.max()))
