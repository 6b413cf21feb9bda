"""A stack of boxes on a device, searched depth first in batches, within a budget of memory."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_strongdual.certification.oracles._boxes.batched_cells import BatchedCells, CellBounds
from torch_strongdual.certification.oracles._boxes.forest import Progress
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem

__all__ = ["BatchBudget", "BatchedForest"]

_LEAST_WIDTH = 2.0**-40  # centres and widths are exact in float64 as long as no side gets smaller


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchBudget:
    """How many cells may be evaluated at once and how many may wait.

    Args:
        batch: Cells evaluated at once, at least one; zero if not even one fits.
        waiting: Cells on the stack.
    """

    batch: int
    waiting: int

    @classmethod
    def of(
        cls, memory_bytes: int, batch_size: int, *, rank: int, num_rows: int, num_outputs: int, is_scalar: bool
    ) -> BatchBudget:
        """Divide the memory that the data leave: a quarter for the stack, the rest for the batch."""
        left = memory_bytes - BatchedCells.bytes_of_data(rank=rank, num_rows=num_rows, num_outputs=num_outputs)
        cell = BatchedCells.bytes_per_cell(rank=rank, num_rows=num_rows, num_outputs=num_outputs, is_scalar=is_scalar)
        depth = _greatest_depth(rank)
        waiting = left // 4 // (2 * 8 * (2 * rank + 1))  # a push copies the stack
        batch = min(batch_size, left * 3 // 4 // cell)
        return cls(batch=batch if batch > 0 and waiting > 2 * rank + depth + 2 else 0, waiting=waiting)


class BatchedForest:
    """All faces of the cube. Of the cells that wait, the deepest are evaluated first, many at a time.

    What is found depends on the batch size, not on the time a round takes nor on the number of cells asked for.

    Args:
        problem: Rows without zeros; one-sided if it has one output.
        device: Where to compute.
        budget: What fits.
    """

    def __init__(self, problem: SphereProblem, *, device: torch.device, budget: BatchBudget) -> None:
        rank = problem.rank
        self._evaluator = BatchedCells(problem, device)
        self._budget = budget
        self._rank = rank
        self._least_volume = 0.5 ** _greatest_depth(rank)
        # One row a cell: centre, half widths, volume.
        stack = torch.zeros(2 * rank, 2 * rank + 1, dtype=torch.float64)
        for face in range(2 * rank):
            stack[face, face // 2] = 1.0 if face % 2 == 0 else -1.0
            stack[face, rank : 2 * rank] = 1.0
            stack[face, rank + face // 2] = 0.0
        stack[:, -1] = 1.0
        self._stack = stack.flip(0).to(device)
        self._cells = 0
        self._volume = 0.0

    @property
    def cells(self) -> int:
        """Cells examined so far."""
        return self._cells

    @property
    def proven_fraction(self) -> float:
        """Fraction of the cube's surface proven so far."""
        return self._volume / (2 * self._rank)

    def advance(self, bound: float, max_cells: int) -> Progress:
        """Examine whole batches until about ``max_cells`` cells are done or a witness turns up."""
        enough = self._cells + max_cells
        while len(self._stack) and self._cells < enough:
            progress = self._examine(self._next_batch(), bound)
            if progress is not None:
                return progress
        return Progress(is_proven=not len(self._stack), witnesses=[], is_stalled=False)

    def copy(self) -> BatchedForest:
        """The same search once more, to go on by itself; tensors are shared, since none is changed in place."""
        return copy.copy(self)

    def _next_batch(self) -> int:
        """Cells to examine next: each may leave one more on the stack, so that batches shrink as the stack fills."""
        # Single cells, depth first, leave at most one a level: room for that is kept.
        room = self._budget.waiting - _greatest_depth(self._rank) - len(self._stack)
        return min(self._budget.batch, len(self._stack), max(1, room // 2))

    def _examine(self, number: int, bound: float) -> Progress | None:
        """Evaluate the cells on top, split those not proven; report counterexamples and cells too small to be split."""
        rank = self._rank
        batch, self._stack = self._stack[-number:], self._stack[:-number]
        self._cells += number
        centre, width = batch[:, :rank], batch[:, rank : 2 * rank]
        found = self._evaluator.evaluate(centre, width, bound)
        is_proven = found.excess <= -self._evaluator.slack(bound)
        self._volume += float(batch[:, -1][is_proven].sum())
        witnesses = _counterexample(found, centre, bound)
        open_cells = batch[~is_proven]
        if len(open_cells):
            side = found.gain.masked_fill(width == 0.0, -1.0)[~is_proven].argmax(1, keepdim=True)
            is_stuck = (open_cells[:, -1] <= self._least_volume) | (
                open_cells[:, rank : 2 * rank].gather(1, side)[:, 0] <= _LEAST_WIDTH
            )
            stuck = open_cells[is_stuck]
            children = _halves(open_cells[~is_stuck], side[~is_stuck], found.aim[~is_proven][~is_stuck])
            self._stack = torch.cat([self._stack, children, stuck])
            if len(stuck):
                witnesses.append(stuck[-1, :rank])
                return self._paused(witnesses, is_stalled=True)
        return self._paused(witnesses, is_stalled=False) if witnesses else None

    def _paused(self, witnesses: list[Tensor], *, is_stalled: bool) -> Progress:
        points = [point.cpu().numpy() for point in witnesses]
        unit = [point / (point @ point) ** 0.5 for point in points]
        return Progress(is_proven=not len(self._stack), witnesses=unit, is_stalled=is_stalled)


def _greatest_depth(rank: int) -> int:
    """Bisections after which a search has stalled at one point; as in ``BoxTree``."""
    return 26 * max(rank - 1, 1)


def _counterexample(found: CellBounds, centre: Tensor, bound: float) -> list[Tensor]:
    """The centre with the largest value, if that exceeds the bound."""
    best = found.ratio.argmax()
    return [centre[best]] if float(found.ratio[best]) > bound else []


def _halves(cells: Tensor, side: Tensor, aim: Tensor) -> Tensor:  # (m, 2r + 1), (m, 1), (m, r) -> (2m, 2r + 1)
    """Both halves of each cell across ``side``; those towards ``aim`` last, so that they are examined first."""
    rank = aim.shape[1]
    half = 0.5 * cells[:, rank : 2 * rank].gather(1, side)
    middle = cells[:, :rank].gather(1, side)
    step = torch.where(aim.gather(1, side) >= middle, half, -half)
    halves = []
    for sign in (-1.0, 1.0):
        child = cells.clone()
        child.scatter_(1, side, middle + sign * step)
        child.scatter_(1, side + rank, half)
        child[:, -1] *= 0.5
        halves.append(child)
    return torch.cat(halves)
