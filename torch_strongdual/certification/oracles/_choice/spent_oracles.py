"""What relaxations said of a problem that they can say no more of: asked again, they are not run again."""

from __future__ import annotations

from torch_strongdual.certification.oracles._recent import Recent
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem

__all__ = ["SpentOracles"]


class SpentOracles:
    """The latest answers that more time would not have made tighter, by the content of their problem and the oracle.

    Args:
        capacity: Answers kept; the oldest leave first.
    """

    def __init__(self, capacity: int = 16) -> None:
        self._answers = Recent[tuple[bytes, str], SphereBound](capacity)

    def answer(self, problem: SphereProblem, oracle: str) -> SphereBound | None:
        """What ``oracle`` said when it had nothing left to say, or ``None``."""
        return self._answers.get((problem.fingerprint(), oracle)) if self._answers else None

    def note(self, problem: SphereProblem, oracle: str, bound: SphereBound) -> None:
        """Keep an answer that more time would not make tighter."""
        if bound.is_exhausted:
            self._answers.put((problem.fingerprint(), oracle), bound)
