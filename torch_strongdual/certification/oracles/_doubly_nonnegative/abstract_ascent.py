"""What the solvers of the doubly nonnegative relaxation have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift

__all__ = ["AbstractAscent", "AbstractAscentPoint"]

FloatArray = NDArray[np.float64]


class AbstractAscentPoint(ABC):
    """Where an ascent stood."""

    @abstractmethod
    def ascent(self, lift: Lift) -> AbstractAscent:
        """Another one of the same kind that begins there, of the same samples, maybe with more signs decided."""


class AbstractAscent(ABC):
    """Looks for good multipliers of the relaxation of one part of the sphere, round by round. It proves nothing itself."""

    iterations: int

    @abstractmethod
    def advance(self, is_over: Callable[[], bool]) -> bool:
        """Iterate for a round, or until time ``is_over``; ``False`` if nothing came of it."""

    @abstractmethod
    def upper(self) -> float:
        """What the present multipliers prove, whatever their quality; ``inf`` for nothing."""

    @property
    @abstractmethod
    def means(self) -> FloatArray:
        """Approximate ``E[e]`` of the lifted vector e: a hint where the maximum is, shape (1 + r + 2 n,).

        Of several outputs, whose u and -u count alike, the main direction of u and roots of second moments instead.
        """

    @property
    @abstractmethod
    def point(self) -> AbstractAscentPoint:
        """Where it stands."""

    @abstractmethod
    def is_settled(self, upper: float, goal: float, *, is_final: bool) -> bool:
        """Whether further rounds will not bring the bound much closer to what is asked for. Called once a round.

        Args:
            upper: Best bound so far.
            goal: What would be enough; smaller.
            is_final: Whether nothing else can be done for this part, so that more patience is in order.
        """
