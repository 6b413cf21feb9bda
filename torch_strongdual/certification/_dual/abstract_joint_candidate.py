"""What the dual solver needs of points that are chosen together with a bound on their dual norm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.dual_norm_bound import DualNormBound

__all__ = ["AbstractJointCandidate", "JointPoint", "JointSituation"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JointPoint:
    """A dual point and what is proven of its dual norm.

    Args:
        candidate: In the dual domain, shape ``(num_samples, 1)``.
        bound: Its dual norm; the lower bound may be missing.
    """

    candidate: Tensor
    bound: DualNormBound


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JointSituation:
    """What the dual solver knows when it asks for a point.

    Args:
        attainable: Best objective known, for effort only.
        near: The dual point of the network at hand.
        near_norm: What is attained of its dual norm, for effort only; zero if that is not known.
        oracle_state: State of the oracle in use.
        sufficient: Dual norm of a point that would be enough, for effort only: less need not be proven.
    """

    attainable: float
    near: Tensor
    near_norm: float = 0.0
    oracle_state: Any = None
    sufficient: Callable[[Tensor], float] = lambda candidate: 0.0


class AbstractJointCandidate(ABC):
    """Iterations that are kept between calls of the dual solver, so that time spent on them is never lost.

    Attributes:
        share: Of the time left, what one call may take.
        total_share: Of the time left, what all calls together may take.
        residual_share: Of the time left, what a coarse bound of the residual may take before.
        worthwhile_from: Looseness of a proof of the residual from which this is worth its time.
        needs_long_steps: Whether twice half the time proves less than all of it at once.
        is_spent: Whether there is nothing to offer, or no more.
    """

    share: float
    total_share: float
    residual_share: float = 0.4
    worthwhile_from: float
    needs_long_steps: bool = False
    is_spent: bool

    @property
    @abstractmethod
    def has_begun(self) -> bool:
        """Whether there was a point already."""

    @abstractmethod
    def next_point(self, deadline: Deadline, situation: JointSituation) -> JointPoint | None:
        """Go on for a while, or until the time is up; ``None`` if there is nothing to offer any more, or no time for it.

        Args:
            deadline: For this call.
            situation: What the solver knows by now.
        """
