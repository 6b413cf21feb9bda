"""Chooses the two-layer oracle by the size of the reduced problem."""

from __future__ import annotations

import dataclasses
import math
from typing import final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.oracles._boxes.search import OVERDRAFT
from torch_strongdual.certification.oracles._choice.expected_looseness import (
    SMALLEST_LOOSENESS,
    expected_looseness,
    measured_seconds,
)
from torch_strongdual.certification.oracles._choice.spent_oracles import SpentOracles
from torch_strongdual.certification.oracles._leading_axes import bound_by_leading_axes
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.abstract_two_layer_oracle import AbstractTwoLayerOracle, TwoLayerState
from torch_strongdual.certification.oracles.angular_sweep_oracle import AngularSweepOracle
from torch_strongdual.certification.oracles.batched_box_branch_and_bound import BatchedBoxBranchAndBound
from torch_strongdual.certification.oracles.box_branch_and_bound import BoxBranchAndBound
from torch_strongdual.certification.oracles.doubly_nonnegative_relaxation import DoublyNonnegativeRelaxation
from torch_strongdual.certification.oracles.polynomial_sandwich import PolynomialSandwich
from torch_strongdual.certification.oracles.quadratic_relaxation import QuadraticRelaxation
from torch_strongdual.certification.oracles.rank_one_oracle import RankOneOracle
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem
from torch_strongdual.nn.branch_spec import BranchSpec

__all__ = ["EASY_RANK", "HARD_RANK", "AutoTwoLayerOracle"]

FloatArray = NDArray[np.float64]

EASY_RANK = 7  # box branch and bound answers in about a second
HARD_RANK = 10  # above, a relaxation of a few hundred samples does better
_HOPELESS_RANK = 14
_STEEP = 0.1  # size of the first axis left out, relative to the largest, from which leading axes may do
_COMPARABLE = 1.2  # oracles expected to be looser than the best by more than this are not tried
_FEW_ROWS = 200  # of several outputs: beyond, the relaxation adds nothing to boxes in reach


@final
class AutoTwoLayerOracle(AbstractTwoLayerOracle):
    """Closed form at rank 1, sweep at rank 2, boxes at small rank; above, ever tighter methods until the request is met.

    The quadratic relaxation comes first. Then, for one output, boxes alone where a short search promises that they will meet
    the request in time; elsewhere that of boxes, the polynomial sandwich and the doubly nonnegative relaxation from which
    measurements at similar sizes (``benchmarks/oracle_costs.py``) promise the tightest bound in the time left, and those that
    come close to it: a problem on which the quadratic relaxation is looser than it was there is taken to be harder for all.
    Several outputs: boxes up to rank ten (fourteen for many samples), then the relaxations. Where the data have few principal
    axes that matter, boxes on these come first, plus what the others can add. What a relaxation said when it had nothing more
    to say is remembered. Says what gave the bound in ``stats["oracle"]``, how long each oracle ran in
    ``stats["seconds in ..."]``, and what limited the bound in ``stats["limited_by"]``.

    Args:
        boxes: The branch and bound to use, for one with a progress callback or a cell budget, or a
            :class:`BatchedBoxBranchAndBound` for a GPU.
        relaxation: The doubly nonnegative relaxation to use, for one on another device or with a node budget.

    Example:
        >>> from torch_strongdual.nn.branch_spec import BranchActivation, BranchSpec
        >>> AutoTwoLayerOracle().supports(BranchSpec(widths=(3, 1, 1), activations=(BranchActivation(),))) is None
        True
    """

    def __init__(
        self,
        *,
        boxes: BoxBranchAndBound | BatchedBoxBranchAndBound | None = None,
        relaxation: DoublyNonnegativeRelaxation | None = None,
    ) -> None:
        self._boxes = BoxBranchAndBound(max_rank=_HOPELESS_RANK) if boxes is None else boxes
        self._relaxation = DoublyNonnegativeRelaxation() if relaxation is None else relaxation
        self._spent = SpentOracles()

    def init(self, spec: BranchSpec, inputs: Tensor) -> TwoLayerState:
        """Reduce the inputs to their row space; compile the branch and bound where it will be used."""
        state = super().init(spec, inputs)
        rank = state.row_space.rank
        needs_boxes = 2 < rank <= self._boxes.max_rank or (rank > 2 and _decays(state.row_space.rows))
        return self._boxes.init(spec, inputs) if needs_boxes else state

    def needs_ascent(self, problem: SphereProblem) -> bool:
        """The closed forms see all maxima at once."""
        return problem.rank > 2

    def maximise(self, problem: SphereProblem, request: BoundRequest, starts: FloatArray) -> SphereBound:
        """Delegate to what suits the problem; see :meth:`AbstractTwoLayerOracle.maximise`."""
        if problem.rank <= 2:
            exact: AbstractTwoLayerOracle = RankOneOracle() if problem.rank <= 1 else AngularSweepOracle()
            return _named(exact, exact.maximise(problem, request, starts))
        if problem.rank <= EASY_RANK:
            return _named(self._boxes, self._boxes.maximise(problem, request, starts))
        if problem.one_sided and _decays(problem.rows):
            leading = bound_by_leading_axes(self._boxes, problem, request, starts, max_rank=EASY_RANK)
            if leading is not None:
                leading = _named(self._boxes, leading)
                if request.is_met(leading.upper, leading.lower):
                    return leading
                asked = dataclasses.replace(request, known_upper=min(request.known_upper, leading.upper))
                return _tighter(self._refined(problem, asked, leading.points), leading)
        return self._refined(problem, request, starts)

    def _refined(self, problem: SphereProblem, request: BoundRequest, starts: FloatArray) -> SphereBound:
        """Ever tighter methods for all coordinates."""
        found = self._quick(problem, request, starts)
        for oracle in self._others(problem):
            if (answer := self._spent.answer(problem, _class_name(oracle))) is not None:
                found = _tighter(found, answer)
        if request.is_met(found.upper, found.lower):
            return found
        steps = self._steps(problem, request, found)
        for number, oracle in enumerate(steps):
            points = found.points if len(found.points) else starts
            share = 1.0 if number == len(steps) - 1 else _share(oracle)
            asked = dataclasses.replace(request, known_upper=min(request.known_upper, found.upper))
            found = _tighter(self._step(oracle, problem, asked, points, share=share), found)
            if request.is_met(found.upper, found.lower):
                break
        return found

    def _steps(self, problem: SphereProblem, request: BoundRequest, found: SphereBound) -> list[AbstractTwoLayerOracle]:
        """What to ask after the quadratic relaxation, in this order."""
        hardness = self._hardness(problem, found.lower)
        if self._boxes_in_reach(problem, request, found, hardness):
            return [self._boxes]
        known = request.known_upper / found.lower - 1.0 if found.lower > 0.0 else math.inf
        return self._refinements(problem, request.deadline.remaining, known, hardness)

    def _quick(self, problem: SphereProblem, request: BoundRequest, starts: FloatArray) -> SphereBound:
        """The quadratic relaxation, unless the question was asked before."""
        has_more = bool(self._others(problem)) or problem.rank <= self._boxes.max_rank
        if has_more and math.isfinite(request.known_upper) and not problem.one_sided:
            attained = float(np.max(problem.values(starts), initial=0.0)) if len(starts) else 0.0
            return SphereBound(upper=math.inf, lower=attained, points=starts, stats={"oracle": ""})
        wide = problem.num_rows <= 2 * problem.rank
        share = (0.5 if wide else 0.15) if has_more else 0.9
        return self._step(QuadraticRelaxation(), problem, request, starts, share=share)

    def _boxes_in_reach(self, problem: SphereProblem, request: BoundRequest, found: SphereBound, hardness: float) -> bool:
        """Whether a short search promises that boxes will meet the request in time, and no relaxation is expected to."""
        boxes = self._boxes
        if not (problem.one_sided and isinstance(boxes, BoxBranchAndBound) and problem.rank <= boxes.max_rank):
            return False
        if boxes.max_cells is not None or not found.lower > 0.0:  # answers of a budget of cells are to be repeatable
            return False
        excess = max(request.floor, request.target or 0.0, (1.0 + request.rtol) * found.lower) / found.lower - 1.0
        seconds = request.deadline.remaining
        others = [self._expected(problem, oracle, seconds, hardness) for oracle in self._others(problem)]
        if min(others, default=math.inf) <= excess:
            return False
        asked = dataclasses.replace(request, known_upper=min(request.known_upper, found.upper))
        return boxes.expected_seconds(problem, asked, found.points) <= OVERDRAFT * request.deadline.remaining

    def _expected(self, problem: SphereProblem, oracle: AbstractTwoLayerOracle, seconds: float, hardness: float) -> float:
        """Looseness that measurements promise; infinite for an oracle that has nothing more to say."""
        name = _class_name(oracle)
        if self._spent.answer(problem, name) is not None:
            return math.inf
        rank = _effective_rank(problem.rows) if oracle is self._boxes else problem.rank
        return expected_looseness(name, rank=rank, num_rows=problem.num_rows, seconds=seconds, hardness=hardness)

    def _hardness(self, problem: SphereProblem, attained: float) -> float:
        """How much looser the quadratic relaxation is than on the problems that were measured; 1 where it is not known."""
        name = QuadraticRelaxation.__name__
        answer = self._spent.answer(problem, name)
        if answer is None or not attained > 0.0:
            return 1.0
        usual = expected_looseness(name, rank=problem.rank, num_rows=problem.num_rows, seconds=math.inf)
        return (answer.upper / max(attained, answer.lower) - 1.0) / usual

    def _others(self, problem: SphereProblem) -> list[AbstractTwoLayerOracle]:
        """Relaxations tighter than the quadratic one."""
        size = problem.rank, problem.num_rows, problem.num_outputs
        return [oracle for oracle in (PolynomialSandwich(), self._relaxation) if oracle.limits(*size) is None]

    def _refinements(
        self, problem: SphereProblem, seconds: float, known: float, hardness: float = 1.0
    ) -> list[AbstractTwoLayerOracle]:
        """What may beat the quadratic relaxation, and a bound of looseness ``known``.

        The most promising one last; where some are expected to leave nothing to be asked for, the quickest of these first.
        """
        if not problem.one_sided:
            return self._for_several_outputs(problem)
        boxes: list[AbstractTwoLayerOracle] = [self._boxes] if problem.rank <= self._boxes.max_rank else []
        oracles = (*self._others(problem), *boxes)
        measured = [(self._expected(problem, oracle, seconds, hardness), oracle) for oracle in oracles]
        expected = [pair for pair in measured if math.isfinite(pair[0])]
        best = min((looseness for looseness, _ in expected), default=math.inf)
        promising = [pair for pair in expected if pair[0] <= max(best, min(_COMPARABLE * best, known))]
        tightest_last = [oracle for _, oracle in sorted(promising, key=lambda pair: -pair[0])]
        ready = [oracle for looseness, oracle in promising if looseness <= SMALLEST_LOOSENESS]
        quickest = min(ready, key=lambda oracle: self._expected_seconds(problem, oracle), default=None)
        return tightest_last if quickest is None else [quickest, *(o for o in tightest_last if o is not quickest)]

    def _for_several_outputs(self, problem: SphereProblem) -> list[AbstractTwoLayerOracle]:
        """Boxes where the rank allows it, and the tightest relaxation: several outputs were not measured."""
        others = self._others(problem)
        has_relaxation = self._relaxation in others
        if problem.rank > min(self._boxes.max_rank, HARD_RANK if has_relaxation else _HOPELESS_RANK):
            return others[-1:]
        if not has_relaxation:
            return [*others[-1:], self._boxes]
        return [self._boxes, *([self._relaxation] if problem.num_rows <= _FEW_ROWS else [])]

    def _expected_seconds(self, problem: SphereProblem, oracle: AbstractTwoLayerOracle) -> float:
        """Until it is as tight as was ever measured."""
        rank = _effective_rank(problem.rows) if oracle is self._boxes else problem.rank
        return measured_seconds(_class_name(oracle), rank=rank, num_rows=problem.num_rows)

    def _step(
        self, oracle: AbstractTwoLayerOracle, problem: SphereProblem, request: BoundRequest, starts: FloatArray, *, share: float
    ) -> SphereBound:
        """Use ``oracle`` for a share of the time left, unless it has nothing more to say."""
        name = _class_name(oracle)
        if (answer := self._spent.answer(problem, name)) is not None:
            return answer
        deadline = request.deadline if share == 1.0 else request.deadline.fraction(share)
        asked = dataclasses.replace(request, deadline=deadline)
        start = deadline.elapsed
        found = _named(oracle, oracle.maximise(problem, asked, starts))
        self._spent.note(problem, name, found)
        spent = {f"seconds in {name}": deadline.elapsed - start}
        return dataclasses.replace(found, stats={**found.stats, **spent})


def _class_name(oracle: AbstractTwoLayerOracle) -> str:
    """Name to look measurements up by: a box search on another device is not measured apart."""
    return BoxBranchAndBound.__name__ if isinstance(oracle, BatchedBoxBranchAndBound) else type(oracle).__name__


def _effective_rank(rows: FloatArray) -> float:
    """Number of principal coordinates that count, as all of them do for the Gaussian rows that were measured (for effort only).

    Boxes are halved along long axes first: short ones cost little.
    """
    lengths = np.linalg.norm(rows, axis=0)
    squares = float(lengths @ lengths)
    return float(lengths.sum()) ** 2 / squares if squares > 0.0 else 0.0


def _decays(rows: FloatArray) -> bool:
    """Whether little is left beyond the first principal coordinates (for effort only)."""
    lengths = np.linalg.norm(rows, axis=0)
    return bool(len(lengths) > EASY_RANK and lengths[EASY_RANK] < _STEEP * lengths[0])


def _share(oracle: AbstractTwoLayerOracle) -> float:
    """Of the time left, for an oracle that others follow."""
    return 0.4 if isinstance(oracle, PolynomialSandwich) else 0.5


def _named(oracle: AbstractTwoLayerOracle, bound: SphereBound) -> SphereBound:
    """Say in ``stats`` which oracle gave the bound."""
    return dataclasses.replace(bound, stats={**bound.stats, "oracle": type(oracle).__name__})


def _tighter(last: SphereBound, before: SphereBound) -> SphereBound:
    """The smaller upper bound with its name, the larger lower bound, and all of ``last``'s other statistics."""
    stats = {**{key: value for key, value in before.stats.items() if key.startswith("seconds in ")}, **last.stats}
    if before.upper <= last.upper and math.isfinite(before.upper):
        stats["oracle"] = before.stats["oracle"]
    best = last if last.lower >= before.lower else before
    return SphereBound(upper=min(last.upper, before.upper), lower=best.lower, points=best.points, stats=stats)
