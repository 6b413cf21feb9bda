"""What a proof of dual feasibility answers, whichever way it went about it."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Feasibility"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Feasibility:
    """Whether a dual norm is at most a limit.

    Args:
        holds: True if proven, False if the opposite is proven, ``None`` if neither.
        upper: Upper bound on the dual norm that was proven; ``inf`` if none.
        method: What was done.
        reason: Why it is not proven; empty if it is.
    """

    holds: bool | None
    upper: float = math.inf
    method: str
    reason: str = ""
