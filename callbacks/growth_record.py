"""What one growth of a network during training did, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GrowthRecord"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthRecord:
    """Numbers of one growth.

    Args:
        epoch: Number of the epoch at whose end it was, from 0.
        num_added: New branches.
        num_pruned: Dead branches that were removed before.
        objective_before: Training objective on all data before, in float64, rounded up.
        objective_after: The same after: lower.

    Example:
        >>> record = GrowthRecord(epoch=3, num_added=2, num_pruned=1, objective_before=1.5, objective_after=1.25)
        >>> record.objective_before - record.objective_after
        0.25
    """

    epoch: int
    num_added: int
    num_pruned: int
    objective_before: float
    objective_after: float
