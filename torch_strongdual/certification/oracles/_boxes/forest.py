"""A box search spread over threads: one tree a face of the cube, a fixed number of them under way at a time."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._boxes.tree import BoxTree, SearchStatus
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem

__all__ = ["BoxForest", "Forest", "Progress"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Progress:
    """What a round of the search brought.

    Args:
        is_proven: Whether the whole surface is proven.
        witnesses: Counterexamples and points the search stalled at, unit vectors.
        is_stalled: Whether some tree cannot go deeper.
    """

    is_proven: bool
    witnesses: list[FloatArray]
    is_stalled: bool


class Forest(Protocol):
    """All faces of the cube, being searched: what is proven stays proven while the bound rises."""

    @property
    def cells(self) -> int:
        """Cells examined so far."""

    @property
    def proven_fraction(self) -> float:
        """Fraction of the cube's surface proven so far."""

    def advance(self, bound: float, max_cells: int) -> Progress:
        """One round of about ``max_cells`` cells; ``bound`` must not be smaller than in earlier rounds."""

    def copy(self) -> Forest:
        """The same search once more, to go on by itself."""


class BoxForest:
    """All faces of the cube, searched by ``num_threads`` threads in rounds.

    The kernels release the interpreter lock. Every round ends for all threads before the next begins, and its results are
    read in the order of the faces, so that what is found does not depend on which thread was faster.

    Args:
        problem: Rows without zeros; one-sided if it has one output.
        num_threads: With one thread a single tree walks over all faces.
    """

    def __init__(self, problem: SphereProblem, *, num_threads: int) -> None:
        num_faces = 2 * problem.rank
        self._problem = problem
        self._threads = min(num_threads, num_faces)
        self._waiting: list[int | None] = [None] if self._threads == 1 else list(range(num_faces))
        self._active: list[BoxTree] = []
        self._done_cells = 0
        self._done_fraction = 0.0
        self._fill()

    @property
    def cells(self) -> int:
        """Cells examined so far."""
        return self._done_cells + sum(tree.cells for tree in self._active)

    @property
    def proven_fraction(self) -> float:
        """Fraction of the cube's surface proven so far."""
        return self._done_fraction + sum(tree.proven_fraction for tree in self._active)

    def advance(self, bound: float, max_cells: int) -> Progress:
        """One round of about ``max_cells`` cells in all; ``bound`` must not be smaller than in earlier rounds."""
        share = max(1, max_cells // len(self._active))
        if len(self._active) == 1:
            statuses = [self._active[0].advance(bound, share)]
        else:
            with ThreadPoolExecutor(len(self._active)) as pool:
                statuses = list(pool.map(lambda tree: tree.advance(bound, share), self._active))
        paused = (SearchStatus.COUNTEREXAMPLE, SearchStatus.STALLED)
        witnesses = [tree.witness for tree, status in zip(self._active, statuses, strict=True) if status in paused]
        finished = [tree for tree, status in zip(self._active, statuses, strict=True) if status == SearchStatus.ALL_PROVEN]
        for tree in finished:
            self._done_cells += tree.cells
            self._done_fraction += tree.proven_fraction
            self._active.remove(tree)
        self._fill()
        return Progress(is_proven=not self._active, witnesses=witnesses, is_stalled=SearchStatus.STALLED in statuses)

    def copy(self) -> BoxForest:
        """The same search once more, to go on by itself; the problem is shared."""
        other = copy.copy(self)
        other._waiting, other._active = list(self._waiting), [tree.copy() for tree in self._active]
        return other

    def _fill(self) -> None:
        """Start trees until as many are under way as there are threads."""
        while len(self._active) < self._threads and self._waiting:
            self._active.append(BoxTree(self._problem, face=self._waiting.pop(0)))
