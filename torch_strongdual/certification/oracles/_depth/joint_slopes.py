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
from torch_strongdual.certification.oracles._depth.sign_cells import samples_to_split
from torch_strongdual.certification.oracles._depth.slope_cuts import SlopeCuts
from torch_strongdual.certification.oracles._depth.slope_program import SlopeProgram, unstacked
from torch_strongdual.certification.oracles._depth.slope_search import SlopeSearch, find_slopes, trial_of

__all__ = ["DeepTraining", "JointSlopes", "JointTrial"]

FloatArray = NDArray[np.float64]

_SIGNS = (1.0, -1.0)
_TRUST = 1.0  # weight of the distance from the best point
_LOOSER, _TIGHTER = 0.5, 1.5
_NEAR = 0.1  # the same weight after a split
_ACCURACY = 2e-3
_MOST_CASES = 40
_PROGRAMS, _HOPELESS = 20, 1.01  # to bound a case beside the others
_AT_A_TIME = 1  # samples of a case whose signs become known at once
_HEAVY, _LIGHT = 0.01, 1e-3  # mass, relative to the largest, of cases that are split, and of those left aside


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
        searches: Lines and maximisers for ``duals`` and for ``-duals``: without known signs first, then, if there are any, for
            each case of a partition by signs.
        estimate: Of the dual norm.
        value: Dual objective of the point, scaled to ``estimate``; no bound.
    """

    duals: FloatArray
    searches: tuple[list[SlopeSearch], list[SlopeSearch]]
    estimate: float
    value: float


class _Side:
    """Tree, cuts and groups for one sign, or for one case of it."""

    def __init__(self, known: SlopeSearch, rows: FloatArray, sign: float) -> None:
        self.rows, self.sign, self.known = rows, sign, known
        #: What the last program gives to its cuts.
        self.mass = 0.0
        self.groups = GroupPool(known.tree.groups, known.choices.flows)
        self.tree = known.tree.with_groups(self.groups.active)
        self.cuts = SlopeCuts(tree=self.tree, rows=rows)
        if known.mixture:
            self.cuts.add(known.mixture)
        else:
            trial_of(self.tree, self.tree.middle(), rows, np.zeros((0, rows.shape[1])), self.cuts)
        self.program = SlopeProgram.of(self.tree)

    def learn(self, duals: FloatArray, level: float, point: FloatArray, multipliers: FloatArray, starts: FloatArray) -> None:
        """Judge a solution by local ascent, and take over what it says of cuts and groups."""
        solution = self.program.solution(level, point, multipliers)
        self.mass = float(solution.weights.sum())
        self.cuts.update(solution.weights)
        tree = replace(self.tree, duals=self.sign * duals)
        found = trial_of(tree, unstacked(tree, solution.point), self.rows, starts, self.cuts)
        self.groups.exchange(tree, self.rows, self.cuts.mixture, solution)
        self.tree = self.cuts.tree = tree.with_groups(self.groups.active)
        self.program = SlopeProgram.of(self.tree)
        self.known = replace(found, mixture=self.cuts.mixture, has_converged=True, is_at_best=True)

    def check(self, duals: FloatArray, enough: float, starts: FloatArray, deadline: Deadline) -> None:
        """Search for lines that bound this case by ``enough`` at another point."""
        known = self.known.at(self.sign * duals, 1.0)
        self.known = find_slopes(
            known.tree,
            self.rows,
            starts=starts,
            rtol=_ACCURACY,
            enough=enough,
            deadline=deadline,
            atoms=known.mixture,
            choices=known.choices,
            max_iterations=_PROGRAMS,
            hopeless=_HOPELESS * enough,
        )

    def halves(self, most: int) -> tuple[_Side, list[_Side]] | None:
        """The case that the mixture belongs to, with some more signs known, and those beside it; ``None`` if nothing helps."""
        known, beside = self.known, []
        for sample, sign in samples_to_split(self.known, self.rows, most):
            beside.append(_Side(replace(known, tree=known.tree.with_sign(sample, -sign)), self.rows, self.sign))
            known = replace(known, tree=known.tree.with_sign(sample, sign))
        return (_Side(known, self.rows, self.sign), beside) if beside else None


class JointSlopes:
    r"""Iterations for the largest dual objective of which lines prove that both signs have a norm of at most the path decay.

    The bound by lines and groups is convex in the dual point as well: functionals of the last pre-activations have to be above
    the duals, which is linear in both. So the same cutting planes find the dual point, lines and flows at once. Rescaling a
    residual instead pays for all that the relaxation loses there; this point spends the loss where it costs least.

    Where that settles, cases by the signs of some pre-activations make it tighter. Most of them matter little: only those with
    weight are part of the programs, the others are looked at when these have settled.

    Args:
        training: What is to be solved.
        known: Searches for the duals to start from, and for their negatives; begun or not.
        centre: Where to begin (n,): programs are solved near the best point so far.
    """

    def __init__(self, training: DeepTraining, known: tuple[SlopeSearch, SlopeSearch], centre: FloatArray) -> None:
        self._training = training
        self._whole = list(known)
        self._sides = [_Side(search, training.rows, sign) for search, sign in zip(known, _SIGNS, strict=True)]
        self._beside: list[_Side] = []
        self._centre, self._weight = centre, _TRUST
        self._best: JointTrial | None = None  # of the present cases, without those beside
        #: The best point of which all cases were looked at.
        self.found: JointTrial | None = None
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
        for side, matrix in zip(self._sides, cuts, strict=True):
            point = found.point[begin : begin + matrix.shape[1]]
            num_rows = len(matrix) + side.program.left.shape[0]
            side.learn(duals, self._training.path_decay, point, found.multipliers[row : row + num_rows], starts)
            begin, row = begin + matrix.shape[1], row + num_rows
        trial = self._trial(duals, self._sides)
        if self._best is None or trial.value > self._best.value:
            self._best, self._centre = trial, duals
            self._weight *= _LOOSER
        else:
            self._weight *= _TIGHTER
        return True

    @property
    def value(self) -> float:
        """What the best point of the present cases attains, were the others no matter."""
        return -np.inf if self._best is None else self._best.value

    def complete(self, starts: FloatArray, deadline: Deadline) -> bool:
        """Look at the cases beside; whether all may stay there. Otherwise some join the programs, which begin again."""
        best = self._best
        if best is None:
            return True
        enough = best.estimate * (1.0 + 0.5 * _ACCURACY)
        for number, side in enumerate(self._beside):
            side.check(best.duals, enough, starts, deadline.fraction(1.0 / (len(self._beside) - number)))
        trial = self._trial(best.duals, self._beside, best) if self._beside else best
        self.found = trial if self.found is None or trial.value > self.found.value else self.found
        joined = [side for side in self._beside if side.known.estimate > best.estimate * (1.0 + _ACCURACY)]
        if joined:
            self._sides += [_Side(side.known, side.rows, side.sign) for side in joined]
            self._beside = [side for side in self._beside if side not in joined]
            self._best, self._weight = None, _NEAR
        return not joined

    def split(self) -> bool:
        """Put samples whose signs would help into cases of their own; whether there are any. The programs begin again."""
        if len(self._sides) + len(self._beside) > _MOST_CASES:
            return False
        # Not where no case is beside any more: those that have joined the programs are no searches for all signs.
        if all(side.known.tree.signs is None for side in self._sides):
            self._whole = [side.known for side in self._sides]
        heaviest, is_split = max(side.mass for side in self._sides), False
        kept: list[_Side] = []
        for side in self._sides:
            halves = side.halves(_AT_A_TIME) if side.mass > _HEAVY * heaviest else None
            if halves is not None:
                kept.append(halves[0])
                self._beside += halves[1]
                is_split = True
            elif side.mass > _LIGHT * heaviest or side.known.tree.signs is None:
                kept.append(side)
            else:
                self._beside.append(side)
        self._sides = kept
        if is_split:
            self._best, self._weight = None, _NEAR
        return is_split

    def _trial(self, duals: FloatArray, sides: list[_Side], known: JointTrial | None = None) -> JointTrial:
        """Of these cases, joined to those of a trial of the same point."""
        searches: list[list[SlopeSearch]] = []
        for index, sign in enumerate(_SIGNS):
            found = [side.known for side in sides if side.sign == sign]
            if known is not None:
                searches.append([*known.searches[index], *found])
            elif found and all(search.tree.signs is None for search in found):
                searches.append(found)
            else:
                searches.append([self._whole[index].at(sign * duals, 1.0), *found])
        estimate = max(side.known.estimate for side in sides)
        estimate = max(estimate, 1e-300 if known is None else known.estimate)
        value = self._training.objective.scaled_value(duals, self._training.path_decay / estimate)
        return JointTrial(duals=duals, searches=(searches[0], searches[1]), estimate=estimate, value=value)

    def _solved(self, cuts: list[FloatArray], deadline: Deadline) -> ConeSolution | None:
        """The dual problem with cuts in place of leaf maxima; variables: duals, then ``y`` of both signs."""
        from scipy import sparse

        given, num = self._training, len(self._training.rows)
        near = given.objective.near(self._centre)
        sizes = [matrix.shape[1] for matrix in cuts]
        nothing: list[Any] = [None] * len(cuts)
        blocks: list[list[Any]] = []
        limits: list[FloatArray] = []
        if given.has_bias:
            blocks.append([sparse.csr_matrix(np.ones((1, num))), *nothing])
            limits.append(np.zeros(1))
        for number, (side, matrix) in enumerate(zip(self._sides, cuts, strict=True)):
            own = list(nothing)
            own[number] = sparse.vstack([sparse.csr_matrix(matrix), side.program.left])
            none = sparse.csr_matrix((len(matrix), num))
            blocks.append([sparse.vstack([none, -side.sign * side.program.given]), *own])
            limits.append(np.concatenate([np.full(len(matrix), given.path_decay), np.zeros(side.program.left.shape[0])]))
        for sign, ends in ((1.0, near.upper), (-1.0, -near.lower)):
            if np.isfinite(ends).all():
                blocks.append([sign * sparse.identity(num, format="csr"), *nothing])
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
