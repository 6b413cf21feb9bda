"""Dual points chosen together with the lines that bound their dual norm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles._depth.cone_solver import ConeSolution, solved_program
from torch_strongdual.certification.oracles._depth.dual_objectives import AbstractDualObjective
from torch_strongdual.certification.oracles._depth.group_pool import GroupPool
from torch_strongdual.certification.oracles._depth.slope_cuts import SlopeCuts
from torch_strongdual.certification.oracles._depth.slope_program import SlopeProgram, unstacked
from torch_strongdual.certification.oracles._depth.slope_search import SlopeSearch, trial_of

__all__ = ["DeepTraining", "JointSlopes", "JointTrial"]

FloatArray = NDArray[np.float64]

_SIGNS = (1.0, -1.0)
_TRUST = 1.0  # weight of the distance from the best point
_LOOSER, _TIGHTER = 0.5, 1.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeepTraining:
    r"""The dual of a training problem with one output.

    Args:
        rows: Data in reduced coordinates.
        objective: What is maximised.
        path_decay: What the dual norm may be.
        has_bias: Whether the dual point must sum to zero.
    """

    rows: FloatArray
    objective: AbstractDualObjective
    path_decay: float
    has_bias: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JointTrial:
    """A dual point with its lines.

    Args:
        duals: Shape (n,).
        searches: Lines and maximisers for ``duals`` and for ``-duals``.
        value: Dual objective of the point, scaled to the estimate of its dual norm; no bound.
    """

    duals: FloatArray
    searches: tuple[SlopeSearch, SlopeSearch]
    value: float


class _Side:
    """Tree, cuts and groups for one sign."""

    def __init__(self, known: SlopeSearch, rows: FloatArray) -> None:
        self.rows = rows
        self.groups = GroupPool(known.tree.groups, known.choices.flows)
        self.tree = known.tree.with_groups(self.groups.active)
        self.cuts = SlopeCuts(tree=self.tree, rows=rows)
        if known.mixture:
            self.cuts.add(known.mixture)
        else:
            trial_of(self.tree, self.tree.middle(), rows, np.zeros((0, rows.shape[1])), self.cuts)
        self.program = SlopeProgram.of(self.tree)

    def learn(
        self, duals: FloatArray, level: float, point: FloatArray, multipliers: FloatArray, starts: FloatArray
    ) -> SlopeSearch:
        """Judge a solution by local ascent, and take over what it says of cuts and groups."""
        solution = self.program.solution(level, point, multipliers)
        self.cuts.update(solution.weights)
        tree = replace(self.tree, duals=duals)
        found = trial_of(tree, unstacked(tree, solution.point), self.rows, starts, self.cuts)
        self.groups.exchange(tree, self.rows, self.cuts.mixture, solution)
        self.tree = self.cuts.tree = tree.with_groups(self.groups.active)
        self.program = SlopeProgram.of(self.tree)
        return replace(found, mixture=self.cuts.mixture, has_converged=True, is_at_best=True)


class JointSlopes:
    r"""Iterations for the largest dual objective of which lines prove that both signs have a norm of at most the path decay.

    The bound by lines and groups is convex in the dual point as well: functionals of the last pre-activations have to be above
    the duals, which is linear in both. So the same cutting planes find the dual point, lines and flows at once. Rescaling a
    residual instead pays for all that the relaxation loses there; this point spends the loss where it costs least.

    Args:
        training: What is to be solved.
        known: Searches for the duals to start from, and for their negatives; begun or not.
        centre: Where to begin (n,): programs are solved near the best point so far.
    """

    def __init__(self, training: DeepTraining, known: tuple[SlopeSearch, SlopeSearch], centre: FloatArray) -> None:
        self._training = training
        self._sides = [_Side(search, training.rows) for search in known]
        self._centre, self._weight = centre, _TRUST
        self.best: JointTrial | None = None
        #: What the last program's point would attain, were its cuts all there is.
        self.hoped = np.inf

    def advance(self, starts: FloatArray, deadline: Deadline) -> bool:
        """Solve one program and judge its point; whether that could be done."""
        num_samples = len(self._training.rows)
        cuts = [side.cuts.matrix() for side in self._sides]
        found = self._solved(cuts, deadline)
        if found is None:
            return False
        duals, begin, row = found.point[:num_samples], num_samples, int(self._training.has_bias)
        self.hoped = self._training.objective.value(duals)
        searches = []
        for sign, side, matrix in zip(_SIGNS, self._sides, cuts, strict=True):
            point = found.point[begin : begin + matrix.shape[1]]
            num_rows = len(matrix) + side.program.left.shape[0]
            searches.append(
                side.learn(sign * duals, self._training.path_decay, point, found.multipliers[row : row + num_rows], starts)
            )
            begin, row = begin + matrix.shape[1], row + num_rows
        trial = JointTrial(duals=duals, searches=(searches[0], searches[1]), value=self._value(duals, searches))
        if self.best is None or trial.value > self.best.value:
            self.best, self._centre = trial, duals
            self._weight *= _LOOSER
        else:
            self._weight *= _TIGHTER
        return True

    def _value(self, duals: FloatArray, searches: list[SlopeSearch]) -> float:
        """Dual objective of the best multiple of ``duals`` that the estimates allow."""
        most = self._training.path_decay / max(*(search.estimate for search in searches), 1e-300)
        return self._training.objective.scaled_value(duals, most)

    def _solved(self, cuts: list[FloatArray], deadline: Deadline) -> ConeSolution | None:
        """The dual problem with cuts in place of leaf maxima; variables: duals, then ``y`` of both signs."""
        from scipy import sparse

        given, num = self._training, len(self._training.rows)
        near = given.objective.near(self._centre)
        sizes = [matrix.shape[1] for matrix in cuts]
        blocks: list[list[Any]] = []
        limits: list[FloatArray] = []
        if given.has_bias:
            blocks.append([sparse.csr_matrix(np.ones((1, num))), None, None])
            limits.append(np.zeros(1))
        for number, (sign, side, matrix) in enumerate(zip(_SIGNS, self._sides, cuts, strict=True)):
            own: list[Any] = [None, None]
            own[number] = sparse.vstack([sparse.csr_matrix(matrix), side.program.left])
            none = sparse.csr_matrix((len(matrix), num))
            blocks.append([sparse.vstack([none, -sign * side.program.given]), *own])
            limits.append(np.concatenate([np.full(len(matrix), given.path_decay), np.zeros(side.program.left.shape[0])]))
        for sign, ends in ((1.0, near.upper), (-1.0, -near.lower)):
            if np.isfinite(ends).all():
                blocks.append([sign * sparse.identity(num, format="csr"), None, None])
                limits.append(ends)
        steadiness = self._weight * near.steadiness
        costs = np.concatenate([-near.slopes - steadiness * self._centre, np.zeros(sum(sizes))])
        curvatures = np.concatenate([near.curvatures + steadiness, np.zeros(sum(sizes))])
        return solved_program(
            costs,
            curvatures,
            sparse.bmat(blocks, format="csr"),
            np.concatenate(limits),
            deadline,
            num_equalities=int(given.has_bias),
        )
