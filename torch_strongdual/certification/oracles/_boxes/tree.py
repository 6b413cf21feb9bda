"""The resumable state of one box search: arrays for the compiled kernel, the rounding slack, and memory."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._boxes.scratch import CellScratch, VectorScratch
from torch_strongdual.certification.oracles.row_space import UNIT_ROUNDOFF
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem

__all__ = ["BoxTree", "SearchStatus"]

FloatArray = NDArray[np.float64]


class SearchStatus:
    """Why a search paused; the numbers are the kernel's."""

    OUT_OF_CELLS = 0
    ALL_PROVEN = 1
    COUNTEREXAMPLE = 2
    STALLED = 3
    ARENA_FULL = 4


class BoxTree:
    """Depth-first search that proves ``||w(p)|| <= bound * ||p||`` on faces of a cube, or finds a counterexample.

    Args:
        problem: Rows without zeros; one-sided if it has one output.
        face: The one face to search; all of the cube's if ``None``.
        max_depth: Deepest level of bisection; a search that gets there has stalled at one point.
    """

    def __init__(self, problem: SphereProblem, *, face: int | None = None, max_depth: int | None = None) -> None:
        rank, outputs = problem.rank, problem.num_outputs
        depth = 26 * max(rank - 1, 1) if max_depth is None else max_depth
        self.problem = problem
        self._vector = not problem.one_sided
        first, last = (0, 2 * rank) if face is None else (face, face + 1)
        self._counters = np.array([-1, first, 0, last], dtype=np.int64)
        self._split, self._stage, self._count, self._offset = (np.zeros(depth + 1, dtype=np.int64) for _ in range(4))
        self._first = np.zeros(depth + 1)
        self._centre, self._width = np.zeros((depth + 1, rank)), np.zeros((depth + 1, rank))
        self._form = np.zeros((depth + 1, rank, outputs))
        capacity = 6 * problem.num_rows + 1024
        self._index = np.zeros(capacity, dtype=np.uint32)
        self._middle, self._reach = np.zeros(capacity), np.zeros(capacity)
        rows, duals, linear, self._exponent = _normalised(problem)
        # The kernels take rows transposed, and are compiled for C layouts.
        self._columns = np.ascontiguousarray(rows.T)
        self._singles = np.ascontiguousarray(rows, dtype=np.float32)
        # The search for one output needs no others.
        self._points = (np.ascontiguousarray(rows),) if self._vector else ()
        self._duals = np.ascontiguousarray(duals[:, 0] if problem.one_sided else duals)
        self._linear = np.ascontiguousarray(linear)
        self._volume, self._witness = np.zeros(1), np.zeros(rank)
        self._mean, self._weights = np.zeros((depth + 1, rank)), np.zeros((depth + 1, rank))
        self._cov = np.zeros((depth + 1, rank, rank))
        self._weight = float(np.linalg.norm(duals, axis=1) @ np.abs(rows).sum(axis=1) + np.abs(linear).sum())

    @property
    def cells(self) -> int:
        """Cells examined so far."""
        return int(self._counters[2])

    @property
    def proven_fraction(self) -> float:
        """Fraction of the cube's surface proven so far."""
        return float(self._volume[0]) / (2 * self.problem.rank)

    @property
    def witness(self) -> FloatArray:
        """Where the search paused, as a unit vector: a counterexample, or the point it stalled at."""
        found: FloatArray = self._witness / np.linalg.norm(self._witness)
        return found

    def copy(self) -> BoxTree:
        """The same search once more, to go on by itself; the problem is shared."""
        memo: dict[int, Any] = {id(self.problem): self.problem}
        return copy.deepcopy(self, memo)

    def _slack(self, bound: float) -> float:
        """Bound on all rounding errors in the evaluation of one cell, normalised as ``bound``; derived in docs/rounding.md."""
        problem, depth = self.problem, self._split.shape[0]
        per_weight = 6 * depth + 2 * problem.num_rows + 14 * problem.rank + 6 * problem.num_outputs + 60
        per_bound = (4 * problem.rank + 40) * math.sqrt(problem.rank)
        return 1.1 * UNIT_ROUNDOFF * (per_weight * self._weight + per_bound * bound)

    def advance(self, bound: float, max_cells: int) -> int:
        """Examine up to ``max_cells`` cells against ``bound``, which must not be smaller than in earlier calls.

        Returns:
            One of :class:`SearchStatus`.
        """
        if self._vector:
            from torch_strongdual.certification.oracles._boxes._vector_kernel import advance_vector as advance
        else:
            from torch_strongdual.certification.oracles._boxes._scalar_kernel import advance_scalar as advance
        before = self.cells
        bound = math.ldexp(bound, self._exponent)
        rank, rows = self._columns.shape
        scratch: tuple[Any, ...] = (CellScratch.of(rank, rows),)
        if self._vector:
            scratch += (VectorScratch.of(rank, rows, self.problem.num_outputs),)
        while True:
            status = int(
                advance(
                    self._columns, *self._points, self._singles, self._duals, self._linear, bound, self._slack(bound),
                    max_cells - (self.cells - before), self._counters, self._split, self._first, self._stage, self._count,
                    self._offset, self._centre, self._width, self._form, self._index, self._middle, self._reach,
                    self._volume, self._witness, self._mean, self._cov, self._weights, *scratch,
                )
            )  # fmt: skip
            if status != SearchStatus.ARENA_FULL:
                return status
            self._index = np.concatenate([self._index, np.zeros_like(self._index)])
            self._middle = np.concatenate([self._middle, np.zeros_like(self._middle)])
            self._reach = np.concatenate([self._reach, np.zeros_like(self._reach)])


def _normalised(problem: SphereProblem) -> tuple[FloatArray, FloatArray, FloatArray, int]:
    """Rows with entries of size one, what that leaves for the duals, the linear part, and the exponent of their common unit.

    All by powers of two, hence exact, but for what underflows beside entries of size one. Single precision needs it.
    """
    sizes = np.frexp(np.abs(problem.rows).max(axis=1, initial=0.0))[1]
    heights = np.frexp(np.abs(problem.duals).max(axis=1, initial=0.0))[1] + sizes
    largest = np.abs(problem.linear).max(initial=0.0)
    exponent = -max(int(heights.max(initial=-2000)), int(np.frexp(largest)[1]) if largest > 0.0 else -2000)
    # The search for one output takes rows with positive duals first; to the other the order makes no difference.
    order = np.argsort(problem.duals[:, 0] <= 0.0, kind="stable")
    rows = np.ldexp(problem.rows, -sizes[:, None])[order]
    duals = np.ldexp(problem.duals, sizes[:, None] + exponent)[order]
    return rows, duals, np.ldexp(problem.linear, exponent), exponent
