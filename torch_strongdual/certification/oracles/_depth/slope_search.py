"""Search for the slopes of a :class:`SlopeTree` that give the smallest bound: cutting planes from the inside."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles._depth.group_pool import GroupPool
from torch_strongdual.certification.oracles._depth.slope_cuts import Atom, SlopeCuts
from torch_strongdual.certification.oracles._depth.slope_program import SlopeProgram, unstacked
from torch_strongdual.certification.oracles._depth.slope_tree import Choices, SlopeTree
from torch_strongdual.certification.oracles.local_ascent import local_maxima

__all__ = ["SlopeSearch", "find_slopes", "trial_of"]

FloatArray = NDArray[np.float64]

_PATIENCE = 6
_NUM_KNOWN = 24  # starts of local ascents


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlopeSearch:
    """Where the search ended.

    Args:
        tree: The tree with all groups that were tried.
        choices: Slopes and flows for it.
        estimate: Largest value found among the leaves there; no bound in either direction.
        points: Maximisers found, one array (m, r) a leaf.
        mixture: Units with weights in the last program: the layer that attains the bound, were nothing lost.
        has_converged: Whether the search ended by itself, not for lack of time.
        is_at_best: Whether more time would not lower the estimate noticeably.
    """

    tree: SlopeTree
    choices: Choices
    estimate: float
    points: list[FloatArray]
    mixture: list[Atom]
    has_converged: bool = False
    is_at_best: bool = False

    def at(self, duals: FloatArray, factor: float) -> SlopeSearch:
        """The same lines and flows, times ``factor``, for other duals."""
        choices = Choices(slopes=factor * self.choices.slopes, flows=factor * self.choices.flows)
        tree = dataclasses.replace(self.tree, duals=duals)
        return dataclasses.replace(self, tree=tree, choices=choices, estimate=factor * self.estimate)


def find_slopes(
    tree: SlopeTree,
    rows: FloatArray,  # shape: (n, r)
    *,
    starts: FloatArray,  # shape: (m, r)
    rtol: float,
    enough: float,
    deadline: Deadline,
    atoms: Sequence[Atom] = (),
    choices: Choices | None = None,
    max_iterations: int = 40,
    hopeless: float = math.inf,
) -> SlopeSearch:
    r"""Minimise the largest leaf maximum over the slopes.

    Seen as a function of the convex functionals :math:`(\hat\alpha, \hat\beta) \ge (\alpha, \beta)`,
    :math:`\hat\alpha + \hat\beta \ge 0`, of all inner nodes the problem is convex; a leaf's maximiser gives a linear minorant.
    Local ascent finds maximisers; a program over the cuts, solved to a few digits by an interior point method, gives the next
    trial, which lies in the middle of the solutions rather than in a corner. The program's prices tell which
    pairs of samples to add to the groups of the tree.

    Args:
        tree: What to choose slopes for.
        rows: Data in reduced coordinates.
        starts: Unit vectors to try first.
        rtol: Stop when best value and program agree to a tenth of this, or when the best value no longer falls.
        enough: Stop when the best value is at most this.
        deadline: Return the best choice so far when it expires.
        atoms: Units that mattered before, for these duals or others.
        choices: Where an earlier search for the same tree ended.
        max_iterations: Programs to solve at most.
        hopeless: Stop when no choice can give less than this.
    """
    groups = GroupPool(tree.groups, None if choices is None else choices.flows)
    cuts = SlopeCuts(tree=tree, rows=rows)
    cuts.add(atoms)
    best = None if atoms and choices is None else trial_of(tree, choices or tree.middle(), rows, starts, cuts)
    tree = cuts.tree = tree.with_groups(groups.active)
    history: list[float] = []
    has_converged = False
    for _ in range(max_iterations):
        if best is not None:
            history.append(best.estimate)
            stalls = len(history) > _PATIENCE and best.estimate > (1.0 - 0.2 * rtol) * history[-1 - _PATIENCE]
            if stalls or best.estimate <= enough or not cuts.leaves:
                has_converged = True
                break
            if deadline.expired:
                break
        found = SlopeProgram.of(tree).solve(tree.duals, cuts.matrix(), deadline)
        if found is None:
            break
        cuts.update(found.weights)
        if best is not None and found.level > hopeless:
            break
        is_close = best is not None and best.estimate - found.level <= 0.1 * rtol * best.estimate
        if not is_close:
            trial = trial_of(tree, unstacked(tree, found.point), rows, starts, cuts)
            best = trial if best is None or trial.estimate < best.estimate else best
        num_new = groups.exchange(tree, rows, cuts.mixture, found)
        if is_close and not num_new:
            has_converged = True
            break
        tree = cuts.tree = tree.with_groups(groups.active)
    best = trial_of(tree, tree.middle(), rows, starts, cuts) if best is None else best
    is_at_best = has_converged and best.estimate > enough
    return dataclasses.replace(best, mixture=cuts.mixture, has_converged=has_converged, is_at_best=is_at_best)


def trial_of(tree: SlopeTree, choices: Choices, rows: FloatArray, starts: FloatArray, cuts: SlopeCuts) -> SlopeSearch:
    """Local maxima of all leaves at ``choices``, which also become cuts."""
    known = np.concatenate([starts, *([np.array(cuts.points)] if cuts.points else [])])
    points, estimate = _leaf_maxima(tree, choices, rows, known, seed=len(cuts.leaves))
    cuts.add(Atom(leaf=leaf, point=point) for leaf, found in enumerate(points) for point in found)
    return SlopeSearch(tree=tree, choices=choices, estimate=estimate, points=points, mixture=[])


def _leaf_maxima(
    tree: SlopeTree, choices: Choices, rows: FloatArray, known: FloatArray, *, seed: int
) -> tuple[list[FloatArray], float]:
    """Local maximisers of each leaf at ``choices``, from the best of the ``known`` unit vectors among others; largest value."""
    found: list[FloatArray] = []
    estimate = 0.0
    for leaf in tree.leaves(choices):
        points = np.zeros((0, rows.shape[1]))
        if not leaf.is_never_positive:
            problem = leaf.on(rows)
            best = known[np.argsort(-problem.values(known), kind="stable")[:_NUM_KNOWN]]
            points = local_maxima(problem, best, num_starts=24, num_kept=8, num_polished=0, seed=seed)
            estimate = max(estimate, float(np.max(problem.values(points), initial=0.0)))
        found.append(points)
    return found, estimate
