"""Search for the slopes of a :class:`SlopeTree` that give the smallest bound: stabilised cutting planes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles._depth.sample_groups import SampleGroups
from torch_strongdual.certification.oracles._depth.slope_tree import Choices, Functional, SlopeTree
from torch_strongdual.certification.oracles.local_ascent import local_maxima

__all__ = ["SlopeSearch", "find_slopes"]

FloatArray = NDArray[np.float64]

_MAX_CUTS = 150
_STEP_OUTWARD = 0.7
_LEAST_FLOW = 1e-9
_LEAST_GAIN = 1e-5
_PATIENCE = 6
_MOST_PRICED = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlopeSearch:
    """Where the search ended.

    Args:
        tree: The tree with all groups that were tried.
        choices: Slopes and flows for it.
        estimate: Largest value found among the leaves there; no bound in either direction.
        points: Maximisers found, one array (m, r) a leaf.
        mixture: Points, and for each its leaf and its weight in the solution of the last linear program: the layer of units
            that attains the bound, were nothing lost.
        has_converged: Whether the search ended by itself: more time would not lower the estimate noticeably.
    """

    tree: SlopeTree
    choices: Choices
    estimate: float
    points: list[FloatArray]
    mixture: list[tuple[FloatArray, int, float]]
    has_converged: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class _Cuts:
    """Linear minorants of the largest leaf maximum, as a function of the inner nodes' functionals and the flows."""

    tree: SlopeTree
    rows: FloatArray
    leaves: list[int] = field(default_factory=list)
    points: list[FloatArray] = field(default_factory=list)
    idle: list[int] = field(default_factory=list)

    def add(self, leaf: int, points: FloatArray) -> None:
        """One cut for each maximiser of a leaf."""
        for point in points:
            self.leaves.append(leaf)
            self.points.append(point)
            self.idle.append(0)

    def forget(self, weights: FloatArray) -> None:
        """Drop the cuts that have been inactive for longest, if there are too many."""
        self.idle = [0 if weight > 0 else age + 1 for age, weight in zip(self.idle, weights, strict=True)]
        excess = len(self.leaves) - _MAX_CUTS
        if excess > 0:
            dropped = set(sorted(range(len(self.leaves)), key=lambda index: -self.idle[index])[:excess])
            keep = [index for index in range(len(self.leaves)) if index not in dropped]
            self.leaves = [self.leaves[index] for index in keep]
            self.points = [self.points[index] for index in keep]
            self.idle = [self.idle[index] for index in keep]

    def matrix(self) -> FloatArray:  # shape: (num_cuts, num_inner * 2 * n + p)
        """Values of the cuts are ``matrix @ y``, y the stacked ``(above, below)`` of all inner nodes, then the flows."""
        num_rows = len(self.rows)
        hidden = np.array(self.points) @ self.rows.T
        tree = self.tree
        signs = [tree.leaf_sign(leaf) for leaf in self.leaves]
        groups = {sign: tree.groups.values(hidden, sign, tree.bend) for sign in (1.0, -1.0)}
        above, below = np.maximum(hidden, 0.0), np.maximum(-hidden, 0.0)
        size = tree.num_inner * 2 * num_rows
        matrix = np.zeros((len(self.leaves), size + tree.groups.number))
        for index, leaf in enumerate(self.leaves):
            node = tree.num_inner + leaf
            matrix[index, size:] = groups[signs[index]][index]
            if leaf > tree.num_inner:  # groups alone
                continue
            parent, is_minus = divmod(node - 1, 2)
            slope = tree.slope_at(parent)
            # plus: (alpha, a beta); minus: (beta, a alpha)
            halves = (slope * below[index], above[index]) if is_minus else (above[index], slope * below[index])
            begin = parent * 2 * num_rows
            matrix[index, begin : begin + 2 * num_rows] = np.concatenate(halves)
        return matrix


def find_slopes(
    tree: SlopeTree,
    rows: FloatArray,  # shape: (n, r)
    *,
    starts: FloatArray,  # shape: (m, r)
    rtol: float,
    enough: float,
    deadline: Deadline,
    max_iterations: int = 40,
) -> SlopeSearch:
    r"""Minimise the largest leaf maximum over the slopes.

    Seen as a function of the convex functionals :math:`(\hat\alpha, \hat\beta) \ge (\alpha, \beta)`,
    :math:`\hat\alpha + \hat\beta \ge 0`, of all inner nodes the problem is convex; a leaf's maximiser gives a linear minorant.
    Local ascent finds maximisers; a linear program over the cuts gives a point, and the next trial lies between it and the best
    point so far (in-out separation), which keeps the trials from jumping between corners. The program's prices tell which
    pairs of samples to add to the groups of the tree.

    Args:
        tree: What to choose slopes for.
        rows: Data in reduced coordinates.
        starts: Unit vectors to try first.
        rtol: Stop when best value and linear program agree to a tenth of this, or when the best value no longer falls.
        enough: Stop when the best value is at most this.
        deadline: Return the best choice so far when it expires.
        max_iterations: Linear programs to solve at most.
    """
    program = _Program.of(tree)
    cuts = _Cuts(tree=tree, rows=rows)
    best = _trial(tree, tree.middle(), rows, starts, cuts)
    mixture: list[tuple[FloatArray, int, float]] = []
    inside = _stacked(tree, best.choices)
    history = [best.estimate]
    has_converged = False
    for _ in range(max_iterations):
        stalls = len(history) > _PATIENCE and best.estimate > (1.0 - 0.2 * rtol) * history[-1 - _PATIENCE]
        if stalls or best.estimate <= enough or not cuts.leaves:
            has_converged = True
            break
        if deadline.expired:
            break
        found = program.solve(cuts.matrix(), deadline)
        if found is None:
            break
        mixture = [(p, leaf, float(w)) for p, leaf, w in zip(cuts.points, cuts.leaves, found.weights, strict=True) if w > 1e-9]
        more = _cheaper_pairs(tree, rows, mixture, found.prices)
        is_close = best.estimate - found.level <= 0.1 * rtol * best.estimate
        cuts.forget(found.weights)
        if is_close and not more.number:
            has_converged = True
            break
        if not is_close:
            between = inside + _STEP_OUTWARD * (found.point - inside)
            trial = _trial(tree, _choices(tree, between), rows, starts, cuts)
            if trial.estimate < best.estimate:
                best, inside = trial, _stacked(tree, trial.choices)
        history.append(best.estimate)
        if more.number:
            tree = tree.with_groups(tree.groups.joined(more))
            program, cuts.tree = _Program.of(tree), tree
            inside = np.concatenate([inside, np.zeros(more.number)])
    flows = np.concatenate([best.choices.flows, np.zeros(tree.groups.number - len(best.choices.flows))])
    choices = Choices(slopes=best.choices.slopes, flows=flows)
    return SlopeSearch(
        tree=tree,
        choices=choices,
        estimate=best.estimate,
        points=best.points,
        mixture=mixture,
        has_converged=has_converged,
    )


def _cheaper_pairs(
    tree: SlopeTree, rows: FloatArray, mixture: list[tuple[FloatArray, int, float]], prices: FloatArray
) -> SampleGroups:
    """Pairs whose first unit of flow would lower the level of the linear program most, at most one for each sample."""
    norms = np.linalg.norm(rows, axis=1)
    plus, minus = np.flatnonzero((tree.duals > 0) & (norms > 0)), np.flatnonzero((tree.duals < 0) & (norms > 0))
    if not mixture or not len(plus) or not len(minus) or len(plus) * len(minus) > _MOST_PRICED:
        return SampleGroups.none(len(rows))
    points = np.array([weight * point for point, _, weight in mixture])
    signs = np.array([tree.leaf_sign(leaf) for _, leaf, _ in mixture])
    hidden = signs[:, None] * (points @ rows.T)
    ratios = norms[plus, None] / norms[None, minus]
    gain = prices[plus, None] - ratios * prices[None, minus]
    for row in hidden:
        gain -= np.maximum(row[plus, None] - ratios * row[None, minus], 0.0)
    level = float(np.abs(prices) @ np.abs(tree.duals))
    gain[~(np.isfinite(ratios) & (ratios > 0))] = -np.inf
    chosen = np.zeros(gain.shape, dtype=bool)
    chosen[np.arange(len(plus)), gain.argmax(axis=1)] = True
    chosen[gain.argmax(axis=0), np.arange(len(minus))] = True
    most = np.minimum(tree.duals[plus, None], -tree.duals[None, minus] / ratios)
    i, j = np.nonzero(chosen & (gain * most > _LEAST_GAIN * level))
    return SampleGroups.of_pairs(plus[i], minus[j], ratios[i, j], len(rows))


def _trial(tree: SlopeTree, choices: Choices, rows: FloatArray, starts: FloatArray, cuts: _Cuts) -> SlopeSearch:
    """Local maxima of all leaves at ``choices``, which also become cuts."""
    found: list[FloatArray] = []
    estimate = 0.0
    for number, leaf in enumerate(tree.leaves(choices)):
        points = np.zeros((0, rows.shape[1]))
        if not leaf.is_never_positive:
            problem = leaf.on(rows)
            known = np.concatenate([starts, *([np.array(cuts.points)] if cuts.points else [])])
            known = known[np.argsort(-problem.values(known), kind="stable")[:24]]
            points = local_maxima(problem, known, num_starts=24, num_kept=8, seed=len(cuts.leaves))
            estimate = max(estimate, float(np.max(problem.values(points), initial=0.0)))
        cuts.add(number, points)
        found.append(points)
    return SlopeSearch(tree=tree, choices=choices, estimate=estimate, points=found, mixture=[])


def _stacked(tree: SlopeTree, choices: Choices) -> FloatArray:
    """``(above, below)`` of all inner nodes, then the flows, in one vector."""
    inner: list[Functional] = tree.nodes(choices)[: tree.num_inner]
    parts = [part for node in inner for part in (node.above, node.below)]
    return np.concatenate([*parts, choices.flows])


def _choices(tree: SlopeTree, stacked: FloatArray) -> Choices:
    """What a stacked vector stands for; exact feasibility is restored by :meth:`SlopeTree.nodes`."""
    size = 2 * len(tree.duals) * tree.num_inner
    pairs = stacked[:size].reshape(tree.num_inner, 2, -1)
    flows = stacked[size:]
    slopes: FloatArray = 0.5 * (pairs[:, 0] - pairs[:, 1])
    return Choices(slopes=slopes, flows=np.where(flows > _LEAST_FLOW * flows.max(initial=0.0), flows, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Solution:
    """Of the linear program.

    Args:
        level: Least level.
        point: Where it is attained.
        weights: Multipliers of the cuts.
        prices: What a unit of each sample's dual costs, shape (n,).
    """

    level: float
    point: FloatArray
    weights: FloatArray
    prices: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Program:
    """The linear program without its cuts.

    Args:
        num_samples: n; the first 2 n constraints keep the root above the duals.
        last_slope: Of the last activation.
        constraints: Sparse; ``constraints @ y <= limits``.
        limits: Right-hand sides.
        bounds: Lower and upper bounds of y, shape (num_variables, 2).
    """

    num_samples: int
    last_slope: float
    constraints: Any
    limits: FloatArray
    bounds: FloatArray

    @classmethod
    def of(cls, tree: SlopeTree) -> _Program:
        """Majorisation along the tree: children dominate what their parent passes down, and all are convex."""
        from scipy import sparse

        num, groups, slope = len(tree.duals), tree.groups, tree.last_slope
        root = tree.root(np.zeros(groups.number))
        largest = float(np.max(root.sample_slopes, initial=0.0))
        bounds = np.tile([-largest, largest], (2 * num * tree.num_inner, 1))
        most = np.maximum(tree.duals[groups.centres], 0.0)
        bounds = np.concatenate([bounds, np.stack([np.zeros(groups.number), most], axis=1)])
        given = np.concatenate([np.ones(groups.number), -groups.weights])
        samples = np.concatenate([groups.centres, groups.members])
        numbers = np.concatenate([np.arange(groups.number), groups.groups])
        taken = sparse.csr_matrix((given, (samples, numbers)), shape=(num, groups.number))
        eye = sparse.identity(num, format="csr")
        num_blocks = 2 * tree.num_inner + 1
        blocks: list[list[Any]] = []
        limits = [-tree.duals, slope * tree.duals]
        for own, factor in ((0, -1.0), (1, slope)):  # above >= duals - taken, below >= -slope (duals - taken)
            row: list[Any] = [None] * num_blocks
            row[own], row[-1] = -eye, factor * taken
            blocks.append(row)
        for node in range(tree.num_inner):
            convex: list[Any] = [None] * num_blocks
            convex[2 * node], convex[2 * node + 1] = -eye, -eye
            convex[-1] = sparse.csr_matrix((num, groups.number))
            blocks.append(convex)
            limits.append(np.zeros(num))
            if node:
                parent, is_plus = divmod(node - 1, 2)[0], node % 2 == 1
                first, last = (2 * parent, 2 * parent + 1) if is_plus else (2 * parent + 1, 2 * parent)
                for own, passed, factor in ((2 * node, first, 1.0), (2 * node + 1, last, tree.slope_at(parent))):
                    row = [None] * num_blocks
                    row[own], row[passed] = -eye, factor * eye
                    blocks.append(row)
                    limits.append(np.zeros(num))
        constraints = sparse.bmat(blocks, format="csr")
        return cls(num_samples=num, last_slope=slope, constraints=constraints, limits=np.concatenate(limits), bounds=bounds)

    def solve(self, cuts: FloatArray, deadline: Deadline) -> _Solution | None:
        """Solve with these cuts; ``None`` if the solver failed."""
        from scipy import sparse
        from scipy.optimize import linprog

        num_cuts, size = cuts.shape
        # The level is the last variable.
        last = sparse.csr_matrix(np.concatenate([np.full(num_cuts, -1.0), np.zeros(len(self.limits))])[:, None])
        left = sparse.vstack([sparse.csr_matrix(cuts), self.constraints])
        options = {"time_limit": max(0.05, min(deadline.remaining, 1e6))}
        found = linprog(
            np.append(np.zeros(size), 1.0),
            A_ub=sparse.hstack([left, last], format="csr"),
            b_ub=np.concatenate([np.zeros(num_cuts), self.limits]),
            bounds=np.concatenate([self.bounds, [[0.0, np.inf]]]),
            method="highs",
            options=options,
        )
        if found.status != 0 or found.x is None or not math.isfinite(found.fun):
            return None
        marginals = np.maximum(-np.asarray(found.ineqlin.marginals, dtype=np.float64), 0.0)
        above, below = marginals[num_cuts:][: 2 * self.num_samples].reshape(2, -1)
        return _Solution(
            level=float(found.fun),
            point=np.asarray(found.x[:size], dtype=np.float64),
            weights=marginals[:num_cuts],
            prices=above - self.last_slope * below,
        )
