"""Box searches that ran out of time, and what they proved: the same question asked again goes on where it stopped."""

from __future__ import annotations

import math

from torch_strongdual.certification.oracles._boxes.forest import Forest
from torch_strongdual.certification.oracles._recent import Recent
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem

__all__ = ["UnfinishedSearches"]


class UnfinishedSearches:
    """The latest forests that did not finish, by the content of their problem and the bound they try to prove.

    Cells proven for a bound are proven for every larger one, so a forest may be resumed for its own bound or a larger one: what
    it has proven is spared then, and its open cells are no more work than a new search would have. Two threads never get the
    same forest: one that is taken for its own bound is no longer here, for a larger one it is a copy.

    Args:
        capacity: Forests kept; the oldest leave first. As many problems are remembered with the smallest bound proven of them.
    """

    def __init__(self, capacity: int = 4) -> None:
        self._forests = Recent[tuple[bytes, float], Forest](capacity)
        self._proven = Recent[bytes, float](capacity)
        self._paces = Recent[tuple[int, ...], float](capacity)

    def proven(self, problem: SphereProblem) -> float:
        """The smallest bound proven of this problem before, infinite if it is not known."""
        known = self._proven.get(problem.fingerprint()) if self._proven else None
        return math.inf if known is None else known

    def remember(self, problem: SphereProblem, bound: float) -> None:
        """Note that ``bound`` is proven of this problem."""
        self._proven.put(problem.fingerprint(), min(bound, self.proven(problem)))

    def pace(self, problem: SphereProblem, default: float) -> float:
        """Seconds that a cell took in the latest search of a problem of this size (for planning)."""
        known = self._paces.get(_size(problem))
        return default if known is None else known

    def note_pace(self, problem: SphereProblem, seconds: float) -> None:
        """Remember what a cell took."""
        self._paces.put(_size(problem), seconds)

    def keep(self, problem: SphereProblem, bound: float, forest: Forest) -> None:
        """Put a forest aside that was advanced with ``bound``."""
        self._forests.put((problem.fingerprint(), bound), forest)

    def take(self, problem: SphereProblem, bound: float) -> Forest | None:
        """The forest with most proven that can go on with ``bound``, or ``None``."""
        key = self._best_key(problem, bound)
        forest = None if key is None else self._forests.take(key)
        if key is None or forest is None or key[1] == bound:
            return forest
        copied = forest.copy()  # while no other thread can have it
        self._forests.put(key, forest)
        return copied

    def peek(self, problem: SphereProblem, bound: float) -> Forest | None:
        """What :meth:`take` would give, to be looked at only."""
        key = self._best_key(problem, bound)
        return None if key is None else self._forests.get(key)

    def _best_key(self, problem: SphereProblem, bound: float) -> tuple[bytes, float] | None:
        if not self._forests:
            return None
        fingerprint = problem.fingerprint()
        usable = [(key, forest) for key, forest in self._forests.items() if key[0] == fingerprint and key[1] <= bound]
        return max(usable, key=lambda pair: pair[1].proven_fraction)[0] if usable else None


def _size(problem: SphereProblem) -> tuple[int, ...]:
    return (*problem.rows.shape, problem.num_outputs, int(problem.one_sided))
