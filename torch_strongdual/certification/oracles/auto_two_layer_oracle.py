"""Chooses the two-layer oracle by the size of the reduced problem."""

from __future__ import annotations

import dataclasses
import math
from typing import final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.oracles._choice.oracle_choice import (
    EASY_RANK,
    HARD_RANK,
    HOPELESS_RANK,
    OracleChoice,
    class_name,
)
from torch_strongdual.certification.oracles._choice.spent_oracles import SpentOracles
from torch_strongdual.certification.oracles._leading_axes import bound_by_leading_axes
from torch_strongdual.certification.oracles._reduced_state import ReducedState
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.abstract_two_layer_oracle import AbstractTwoLayerOracle
from torch_strongdual.certification.oracles.batched_box_branch_and_bound import BatchedBoxBranchAndBound
from torch_strongdual.certification.oracles.box_branch_and_bound import BoxBranchAndBound
from torch_strongdual.certification.oracles.doubly_nonnegative_relaxation import DoublyNonnegativeRelaxation
from torch_strongdual.certification.oracles.polynomial_sandwich import PolynomialSandwich
from torch_strongdual.certification.oracles.quadratic_relaxation import QuadraticRelaxation
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem
from torch_strongdual.nn.branch_spec import BranchSpec

__all__ = ["EASY_RANK", "HARD_RANK", "AutoTwoLayerOracle"]

FloatArray = NDArray[np.float64]


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
        self._boxes = BoxBranchAndBound(max_rank=HOPELESS_RANK) if boxes is None else boxes
        self._relaxation = DoublyNonnegativeRelaxation() if relaxation is None else relaxation
        self._spent = SpentOracles()
        self._choice = OracleChoice(self._boxes, self._relaxation, self._spent)

    def init(self, spec: BranchSpec, inputs: Tensor) -> ReducedState:
        """Reduce the inputs to their row space; compile the branch and bound where it will be used."""
        state = super().init(spec, inputs)
        return self._boxes.init(spec, inputs) if self._choice.may_use_boxes(state.row_space.rows) else state

    def needs_ascent(self, problem: SphereProblem) -> bool:
        """The closed forms see all maxima at once."""
        return problem.rank > 2

    def maximise(self, problem: SphereProblem, request: BoundRequest, starts: FloatArray) -> SphereBound:
        """Delegate to what suits the problem; see :meth:`AbstractTwoLayerOracle.maximise`."""
        if (sole := self._choice.sole(problem)) is not None:
            return _named(sole, sole.maximise(problem, request, starts))
        if problem.one_sided and self._choice.has_leading_axes(problem.rows):
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
        for oracle in self._choice.tight_relaxations(problem):
            if (answer := self._spent.answer(problem, class_name(oracle))) is not None:
                found = _tighter(found, answer)
        if request.is_met(found.upper, found.lower):
            return found
        steps = self._choice.order(problem, request, found)
        for number, oracle in enumerate(steps):
            points = found.points if len(found.points) else starts
            share = 1.0 if number == len(steps) - 1 else _share(oracle)
            asked = dataclasses.replace(request, known_upper=min(request.known_upper, found.upper))
            found = _tighter(self._step(oracle, problem, asked, points, share=share), found)
            if request.is_met(found.upper, found.lower):
                break
        return found

    def _quick(self, problem: SphereProblem, request: BoundRequest, starts: FloatArray) -> SphereBound:
        """The quadratic relaxation, unless the question was asked before."""
        has_more = self._choice.has_more(problem)
        if has_more and math.isfinite(request.known_upper) and not problem.one_sided:
            attained = float(np.max(problem.values(starts), initial=0.0)) if len(starts) else 0.0
            return SphereBound(upper=math.inf, lower=attained, points=starts, stats={"oracle": ""})
        wide = problem.num_rows <= 2 * problem.rank
        share = (0.5 if wide else 0.15) if has_more else 0.9
        return self._step(QuadraticRelaxation(), problem, request, starts, share=share)

    def _step(
        self, oracle: AbstractTwoLayerOracle, problem: SphereProblem, request: BoundRequest, starts: FloatArray, *, share: float
    ) -> SphereBound:
        """Use ``oracle`` for a share of the time left, unless it has nothing more to say."""
        name = class_name(oracle)
        if (answer := self._spent.answer(problem, name)) is not None:
            return answer
        deadline = request.deadline if share == 1.0 else request.deadline.fraction(share)
        asked = dataclasses.replace(request, deadline=deadline)
        start = deadline.elapsed
        found = _named(oracle, oracle.maximise(problem, asked, starts))
        self._spent.note(problem, name, found)
        spent = {f"seconds in {name}": deadline.elapsed - start}
        return dataclasses.replace(found, stats={**found.stats, **spent})


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
