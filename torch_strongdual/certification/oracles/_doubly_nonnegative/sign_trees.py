"""Searches over signs that did not get as far as they were asked to: the same question asked again goes on with them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch_strongdual.certification.oracles._doubly_nonnegative.sign_tree import SignTree
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem

__all__ = ["SignTrees"]


class SignTrees:
    """The latest trees, by the content of their problem. One that is taken is no longer here: no two threads get the same.

    Args:
        capacity: Trees kept, whose starting points take memory; the oldest leave first. The two signs of a dual point are two.
    """

    def __init__(self, capacity: int = 2) -> None:
        self._capacity = capacity
        self._trees: OrderedDict[bytes, SignTree] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles start empty: what is kept here only saves time."""
        return SignTrees, (self._capacity,)

    def keep(self, problem: SphereProblem, tree: SignTree) -> None:
        """Put a tree aside."""
        self._trees[problem.fingerprint()] = tree
        while len(self._trees) > self._capacity:
            self._trees.popitem(last=False)

    def take(self, problem: SphereProblem) -> SignTree | None:
        """The tree of this problem, or ``None``."""
        return self._trees.pop(problem.fingerprint(), None) if self._trees else None
