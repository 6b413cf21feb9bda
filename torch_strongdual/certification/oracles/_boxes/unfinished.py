"""Box searches that ran out of time, kept so that the same question asked again goes on where it stopped."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

import numpy as np

from torch_strongdual.certification.oracles._boxes.forest import Forest
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem

__all__ = ["UnfinishedSearches"]

_SLACK = 2e-3  # a search is taken up for bounds larger by this much: its cells are finer than needed, and proven all the same


class UnfinishedSearches:
    """The latest forests that did not finish, by the content of their problem and the bound they try to prove.

    Cells proven for a bound are proven for every larger one, so a forest may be resumed for its own bound or a larger one. Two
    threads never get the same forest: one that is taken is no longer here.

    Args:
        capacity: Forests kept; the oldest leave first.
    """

    def __init__(self, capacity: int = 4) -> None:
        self._capacity = capacity
        self._forests: OrderedDict[tuple[bytes, float], Forest] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles start empty: what is kept here only saves time."""
        return UnfinishedSearches, (self._capacity,)

    def keep(self, problem: SphereProblem, bound: float, forest: Forest) -> None:
        """Put a forest aside that was advanced with ``bound``."""
        self._forests[_fingerprint(problem), bound] = forest
        while len(self._forests) > self._capacity:
            self._forests.popitem(last=False)

    def take(self, problem: SphereProblem, bound: float) -> Forest | None:
        """A forest of the same problem that can go on with ``bound``, or ``None``."""
        if not self._forests:
            return None
        fingerprint = _fingerprint(problem)
        for key in list(self._forests):
            if key[0] == fingerprint and key[1] <= bound <= key[1] * (1.0 + _SLACK):
                return self._forests.pop(key, None)
        return None


def _fingerprint(problem: SphereProblem) -> bytes:
    digest = hashlib.blake2b(repr((problem.rows.shape, problem.duals.shape, problem.one_sided)).encode())
    for array in (problem.rows, problem.duals, problem.linear):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()
