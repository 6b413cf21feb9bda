"""A deadline in CPU time, so that limits and seconds mean the same on a busy machine."""

from __future__ import annotations

import time

from torch_strongdual.certification import Deadline

__all__ = ["CpuDeadline"]


class CpuDeadline(Deadline):
    """Counts down the CPU time of this process, all its threads together.

    Args:
        seconds: Time allowed.
    """

    __slots__ = ("_last", "_seconds")

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._last = time.process_time() + seconds

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._last - time.process_time())

    @property
    def elapsed(self) -> float:
        """Seconds since this object was made."""
        return time.process_time() - self._last + self._seconds

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return time.process_time() >= self._last

    def fraction(self, share: float) -> Deadline:
        """Return a new deadline after ``share`` of the time that is left."""
        return CpuDeadline(self.remaining * share)
