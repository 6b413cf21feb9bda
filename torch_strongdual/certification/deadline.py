"""A moment in time by which work has to end."""

from __future__ import annotations

import math
import time

__all__ = ["Deadline"]


class Deadline:
    """Counts down from the moment it is made.

    Args:
        seconds: Time allowed; ``math.inf`` for no limit.

    Example:
        >>> Deadline(60.0).expired
        False
    """

    __slots__ = ("_end", "_start")

    def __init__(self, seconds: float = math.inf) -> None:
        self._start = time.monotonic()
        self._end = self._start + seconds

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - time.monotonic())

    @property
    def elapsed(self) -> float:
        """Seconds since this object was made."""
        return time.monotonic() - self._start

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return time.monotonic() >= self._end

    def fraction(self, share: float) -> Deadline:
        """Return a new deadline after ``share`` of the time that is left."""
        return Deadline(self.remaining * share)
