"""What one certification during training found, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CertificationRecord"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificationRecord:
    """Numbers of one certification, small enough to keep for every epoch.

    Args:
        epoch: Number of the epoch at whose end it ran, from 0.
        primal_value: Training objective of the network then, rounded up; NaN or infinite if its outputs were.
        dual_bound: Best proven lower bound of the run so far; ``-inf`` if nothing is proven.
        relative_gap: Their distance relative to the objective; 1 where all that is proven is that the loss is never negative.
        path_decay: Strength of the penalty then, which is part of the problem that the bound speaks of.
        seconds: Time it took.

    Example:
        >>> record = CertificationRecord(
        ...     epoch=0, primal_value=2.0, dual_bound=1.5, relative_gap=0.25, path_decay=0.1, seconds=0.3
        ... )
        >>> record.duality_gap
        0.5
    """

    epoch: int
    primal_value: float
    dual_bound: float
    relative_gap: float
    path_decay: float
    seconds: float

    @property
    def duality_gap(self) -> float:
        """How far, at most, the network was from the best objective."""
        return self.primal_value - self.dual_bound
