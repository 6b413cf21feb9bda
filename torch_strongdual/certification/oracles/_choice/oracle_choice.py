"""Which oracle to ask about a two-layer problem, and in what order: every reason for a choice is here."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._boxes.search import OVERDRAFT
from torch_strongdual.certification.oracles._choice.expected_looseness import (
    SMALLEST_LOOSENESS,
    expected_looseness,
    measured_seconds,
)
from torch_strongdual.certification.oracles._choice.spent_oracles import SpentOracles
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.abstract_two_layer_oracle import AbstractTwoLayerOracle
from torch_strongdual.certification.oracles.angular_sweep_oracle import AngularSweepOracle
from torch_strongdual.certification.oracles.batched_box_branch_and_bound import BatchedBoxBranchAndBound
from torch_strongdual.certification.oracles.box_branch_and_bound import BoxBranchAndBound
from torch_strongdual.certification.oracles.doubly_nonnegative_relaxation import DoublyNonnegativeRelaxation
from torch_strongdual.certification.oracles.polynomial_sandwich import PolynomialSandwich
from torch_strongdual.certification.oracles.quadratic_relaxation import QuadraticRelaxation
from torch_strongdual.certification.oracles.rank_one_oracle import RankOneOracle
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem

__all__ = ["EASY_RANK", "HARD_RANK", "HOPELESS_RANK", "OracleChoice", "class_name"]

FloatArray = NDArray[np.float64]

EASY_RANK = 7  # box branch and bound answers in about a second
HARD_RANK = 10  # above, a relaxation of a few hundred samples does better
HOPELESS_RANK = 14
_STEEP = 0.1  # size of the first axis left out, relative to the largest, from which leading axes may do
_COMPARABLE = 1.2  # oracles expected to be looser than the best by more than this are not tried
_FEW_ROWS = 200  # of several outputs: beyond, the relaxation adds nothing to boxes in reach


class OracleChoice:
    """The order in which oracles are asked, from what is known of a problem; nothing here proves anything.

    Three questions, each answered by what is known best:

    1. *Does one method settle it?* The rank says so (:meth:`sole`): closed forms up to two, boxes alone up to seven. Where few
       principal axes matter, boxes on these come first (:meth:`has_leading_axes`).
    2. *Will boxes meet the request in time, while no relaxation is expected to?* A short search says so; then they alone are
       asked (first line of :meth:`order`).
    3. *Which of boxes, polynomial sandwich and doubly nonnegative relaxation is tightest in the time left?* Measurements at
       similar sizes say so for one output. A problem on which the quadratic relaxation, which ran before, is looser than on
       those measured is taken to be as much harder for all. Several outputs were not measured: rank and samples decide.

    Args:
        boxes: The branch and bound in use.
        relaxation: The doubly nonnegative relaxation in use.
        spent: Oracles that have nothing more to say of a problem; they are not chosen again.
    """

    def __init__(
        self,
        boxes: BoxBranchAndBound | BatchedBoxBranchAndBound,
        relaxation: DoublyNonnegativeRelaxation,
        spent: SpentOracles,
    ) -> None:
        self._boxes, self._relaxation, self._spent = boxes, relaxation, spent

    # By rank

    def sole(self, problem: SphereProblem) -> AbstractTwoLayerOracle | None:
        """The oracle that settles a problem of this rank alone, or ``None``."""
        if problem.rank <= 1:
            return RankOneOracle()
        if problem.rank <= 2:
            return AngularSweepOracle()
        return self._boxes if problem.rank <= EASY_RANK else None

    def has_leading_axes(self, rows: FloatArray) -> bool:
        """Whether little is left beyond the first principal coordinates, so that boxes on these may do."""
        lengths = np.linalg.norm(rows, axis=0)
        return bool(len(lengths) > EASY_RANK and lengths[EASY_RANK] < _STEEP * lengths[0])

    def may_use_boxes(self, rows: FloatArray) -> bool:
        """Whether problems with these rows, in principal coordinates, may come to boxes."""
        rank = rows.shape[1]
        return 2 < rank <= self._boxes.max_rank or (rank > 2 and self.has_leading_axes(rows))

    def tight_relaxations(self, problem: SphereProblem) -> list[AbstractTwoLayerOracle]:
        """Those tighter than the quadratic one that take problems of this size."""
        size = problem.rank, problem.num_rows, problem.num_outputs
        return [oracle for oracle in (PolynomialSandwich(), self._relaxation) if oracle.limits(*size) is None]

    def has_more(self, problem: SphereProblem) -> bool:
        """Whether anything can follow the quadratic relaxation."""
        return bool(self.tight_relaxations(problem)) or problem.rank <= self._boxes.max_rank

    # By trial and by measurements

    def order(self, problem: SphereProblem, request: BoundRequest, found: SphereBound) -> list[AbstractTwoLayerOracle]:
        """What to ask after the quadratic relaxation, in this order.

        Args:
            problem: Of a rank that no oracle settles alone.
            request: When to stop.
            found: What is known by now.
        """
        hardness = self._hardness(problem, found.lower)
        if self._boxes_will_do(problem, request, found, hardness):
            return [self._boxes]
        if not problem.one_sided:
            return self._for_several_outputs(problem)
        known = request.known_upper / found.lower - 1.0 if found.lower > 0.0 else math.inf
        return self.by_measurements(problem, request.deadline.remaining, known, hardness)

    def by_measurements(
        self, problem: SphereProblem, seconds: float, known: float, hardness: float = 1.0
    ) -> list[AbstractTwoLayerOracle]:
        """What may beat the quadratic relaxation for one output, and a bound of looseness ``known``.

        The most promising one last; where some are expected to leave nothing to be asked for, the quickest of these first.
        """
        boxes: list[AbstractTwoLayerOracle] = [self._boxes] if problem.rank <= self._boxes.max_rank else []
        oracles = (*self.tight_relaxations(problem), *boxes)
        measured = [(self._expected(problem, oracle, seconds, hardness), oracle) for oracle in oracles]
        expected = [pair for pair in measured if math.isfinite(pair[0])]
        best = min((looseness for looseness, _ in expected), default=math.inf)
        promising = [pair for pair in expected if pair[0] <= max(best, min(_COMPARABLE * best, known))]
        tightest_last = [oracle for _, oracle in sorted(promising, key=lambda pair: -pair[0])]
        ready = [oracle for looseness, oracle in promising if looseness <= SMALLEST_LOOSENESS]
        quickest = min(ready, key=lambda oracle: self._expected_seconds(problem, oracle), default=None)
        return tightest_last if quickest is None else [quickest, *(o for o in tightest_last if o is not quickest)]

    def _boxes_will_do(self, problem: SphereProblem, request: BoundRequest, found: SphereBound, hardness: float) -> bool:
        """Whether a short search promises that boxes will meet the request in time, and no relaxation is expected to."""
        boxes = self._boxes
        if not (problem.one_sided and isinstance(boxes, BoxBranchAndBound) and problem.rank <= boxes.max_rank):
            return False
        if boxes.max_cells is not None or not found.lower > 0.0:  # answers of a budget of cells are to be repeatable
            return False
        excess = max(request.floor, request.target or 0.0, (1.0 + request.rtol) * found.lower) / found.lower - 1.0
        seconds = request.deadline.remaining
        others = [self._expected(problem, oracle, seconds, hardness) for oracle in self.tight_relaxations(problem)]
        if min(others, default=math.inf) <= excess:
            return False
        asked = dataclasses.replace(request, known_upper=min(request.known_upper, found.upper))
        return boxes.expected_seconds(problem, asked, found.points) <= OVERDRAFT * request.deadline.remaining

    def _for_several_outputs(self, problem: SphereProblem) -> list[AbstractTwoLayerOracle]:
        """Boxes where the rank allows it, and the tightest relaxation: several outputs were not measured."""
        others = self.tight_relaxations(problem)
        has_relaxation = self._relaxation in others
        if problem.rank > min(self._boxes.max_rank, HARD_RANK if has_relaxation else HOPELESS_RANK):
            return others[-1:]
        if not has_relaxation:
            return [*others[-1:], self._boxes]
        return [self._boxes, *([self._relaxation] if problem.num_rows <= _FEW_ROWS else [])]

    def _expected(self, problem: SphereProblem, oracle: AbstractTwoLayerOracle, seconds: float, hardness: float) -> float:
        """Looseness that measurements promise; infinite for an oracle that has nothing more to say."""
        name = class_name(oracle)
        if self._spent.answer(problem, name) is not None:
            return math.inf
        rank = self._counting_rank(problem, oracle)
        return expected_looseness(name, rank=rank, num_rows=problem.num_rows, seconds=seconds, hardness=hardness)

    def _expected_seconds(self, problem: SphereProblem, oracle: AbstractTwoLayerOracle) -> float:
        """Until it is as tight as was ever measured."""
        return measured_seconds(class_name(oracle), rank=self._counting_rank(problem, oracle), num_rows=problem.num_rows)

    def _counting_rank(self, problem: SphereProblem, oracle: AbstractTwoLayerOracle) -> float:
        """Rank to look measurements up by. Boxes are halved along long axes first: short ones cost little."""
        return _effective_rank(problem.rows) if oracle is self._boxes else problem.rank

    def _hardness(self, problem: SphereProblem, attained: float) -> float:
        """How much looser the quadratic relaxation is than on the problems that were measured; 1 where it is not known."""
        name = QuadraticRelaxation.__name__
        answer = self._spent.answer(problem, name)
        if answer is None or not attained > 0.0:
            return 1.0
        usual = expected_looseness(name, rank=problem.rank, num_rows=problem.num_rows, seconds=math.inf)
        return (answer.upper / max(attained, answer.lower) - 1.0) / usual


def class_name(oracle: AbstractTwoLayerOracle) -> str:
    """Name to look measurements up by: a box search on another device is not measured apart."""
    return BoxBranchAndBound.__name__ if isinstance(oracle, BatchedBoxBranchAndBound) else type(oracle).__name__


def _effective_rank(rows: FloatArray) -> float:
    """Number of principal coordinates that count, as all of them do for the Gaussian rows that were measured."""
    lengths = np.linalg.norm(rows, axis=0)
    squares = float(lengths @ lengths)
    return float(lengths.sum()) ** 2 / squares if squares > 0.0 else 0.0
