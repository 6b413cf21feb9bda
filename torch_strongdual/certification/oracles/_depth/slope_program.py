"""Convex programs over slopes and flows, with the cuts found so far in place of leaf maxima."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles._depth.cone_solver import solved_program
from torch_strongdual.certification.oracles._depth.slope_tree import Choices, SlopeTree

__all__ = ["SlopeProgram", "SlopeSolution", "unstacked"]

FloatArray = NDArray[np.float64]

_LEAST_FLOW = 1e-6
_FAR = 4.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlopeSolution:
    """Of the program for given duals.

    Args:
        level: Least level.
        point: Where it is attained, flows that are zero but for the solver's accuracy set to zero.
        weights: Multipliers of the cuts.
        prices: What a unit of each sample's dual costs, shape (n,).
    """

    level: float
    point: FloatArray
    weights: FloatArray
    prices: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlopeProgram:
    """Majorisation along a tree as linear inequalities ``left y <= given duals``; see :class:`SlopeCuts` for y.

    Args:
        num_samples: n.
        num_groups: p.
        last_slope: Of the last activation.
        left: Sparse: 2 n rows that keep the root above the duals, then children above parents and convexity, then flows >= 0.
        given: Sparse (k, n).
    """

    num_samples: int
    num_groups: int
    last_slope: float
    left: Any
    given: Any

    @classmethod
    def of(cls, tree: SlopeTree) -> SlopeProgram:
        """Children dominate what their parent passes down, and all are convex."""
        from scipy import sparse

        num, groups, slope = len(tree.duals), tree.groups, tree.last_slope
        shares = np.concatenate([np.ones(groups.number), -groups.weights])
        samples = np.concatenate([groups.centres, groups.members])
        numbers = np.concatenate([np.arange(groups.number), groups.groups])
        taken = sparse.csr_matrix((shares, (samples, numbers)), shape=(num, groups.number))
        eye = sparse.identity(num, format="csr")
        num_blocks = 2 * tree.num_inner + 1
        blocks: list[list[Any]] = []

        def add(*parts: tuple[int, Any]) -> None:
            row: list[Any] = [None] * num_blocks
            for position, part in parts:
                row[position] = part
            blocks.append(row)

        signs = np.zeros(num) if tree.signs is None else tree.signs
        above, below = (sparse.diags((sign * signs >= 0).astype(np.float64), format="csr") for sign in (1.0, -1.0))
        add((0, -eye), (num_blocks - 1, -above @ taken))  # above >= duals - taken, unless never reached
        add((1, -eye), (num_blocks - 1, slope * below @ taken))  # below >= -slope (duals - taken), likewise
        for node in range(tree.num_inner):
            add((2 * node, -eye), (2 * node + 1, -eye))
            if node:
                parent, is_plus = divmod(node - 1, 2)[0], node % 2 == 1
                first, last = (2 * parent, 2 * parent + 1) if is_plus else (2 * parent + 1, 2 * parent)
                add((2 * node, -eye), (first, eye))
                add((2 * node + 1, -eye), (last, tree.slope_at(parent) * eye))
        add((num_blocks - 1, -sparse.identity(groups.number, format="csr")))
        left = sparse.bmat(blocks, format="csr")
        zeros = sparse.csr_matrix((left.shape[0] - 2 * num, num))
        given = sparse.vstack([_far(tree, above) - above, _far(tree, below) + slope * below, zeros], format="csr")
        return cls(num_samples=num, num_groups=groups.number, last_slope=slope, left=left, given=given)

    def solve(self, duals: FloatArray, cuts: FloatArray, deadline: Deadline) -> SlopeSolution | None:
        """Lower the largest cut; ``None`` if the solver failed."""
        from scipy import sparse

        num_cuts, size = cuts.shape
        # The level is the last variable.
        level = sparse.csr_matrix(np.concatenate([np.full(num_cuts, -1.0), np.zeros(self.left.shape[0])])[:, None])
        left = sparse.hstack([sparse.vstack([sparse.csr_matrix(cuts), self.left]), level])
        limits = np.concatenate([np.zeros(num_cuts), self.given @ duals])
        found = solved_program(np.append(np.zeros(size), 1.0), np.zeros(size + 1), left, limits, deadline)
        if found is None:
            return None
        return self.solution(float(found.point[-1]), found.point[:size], found.multipliers)

    def solution(self, level: float, point: FloatArray, multipliers: FloatArray) -> SlopeSolution:
        """Of a program with these variables; ``multipliers`` of its cuts, then of :attr:`left`."""
        num_cuts = len(multipliers) - self.left.shape[0]
        root = multipliers[num_cuts:][: 2 * self.num_samples]
        return SlopeSolution(
            level=level,
            point=self._cleaned(point, multipliers[num_cuts:]),
            weights=multipliers[:num_cuts],
            prices=root[: self.num_samples] - self.last_slope * root[self.num_samples :],
        )

    def _cleaned(self, point: FloatArray, multipliers: FloatArray) -> FloatArray:
        """``point`` without flows that are positive only because the solver stays inside: smaller than their multipliers."""
        size = len(point) - self.num_groups
        flows, prices = point[size:], multipliers[len(multipliers) - self.num_groups :]
        shares = flows / max(float(flows.max(initial=0.0)), 1e-300)
        is_used = (shares > _LEAST_FLOW) & (shares * float(prices.max(initial=0.0)) > prices)
        return np.concatenate([point[:size], np.where(is_used, flows, 0.0)])


def _far(tree: SlopeTree, needed: Any) -> Any:
    """A multiple of the largest dual, as a matrix times the duals, in rows where nothing is needed: bounded all the same."""
    from scipy import sparse

    rows = np.flatnonzero(needed.diagonal() == 0.0)
    largest = int(np.argmax(np.abs(tree.duals)))
    values = np.full(len(rows), _FAR * float(np.sign(tree.duals[largest])))
    return sparse.csr_matrix((values, (rows, np.full(len(rows), largest))), shape=needed.shape)


def unstacked(tree: SlopeTree, stacked: FloatArray) -> Choices:
    """What a stacked vector stands for; exact feasibility is restored by :meth:`SlopeTree.nodes`."""
    size = 2 * len(tree.duals) * tree.num_inner
    pairs = stacked[:size].reshape(tree.num_inner, 2, -1)
    slopes: FloatArray = 0.5 * (pairs[:, 0] - pairs[:, 1])
    return Choices(slopes=slopes, flows=np.maximum(stacked[size:], 0.0))
