"""Whether certification, rather than training, is what a fit spends its time on."""

from __future__ import annotations

import time
from collections.abc import Iterable

from lightning.pytorch.utilities import rank_zero_warn

from torch_strongdual.errors import StrongDualWarning

__all__ = ["PaceWatch"]

_LEAST_NUMBER, _LEAST_SECONDS, _LARGE = 3, 20.0, 4.0


class PaceWatch:
    """Says once, where training waits for certification most of the time, what makes it wait less."""

    def __init__(self) -> None:
        self._begin = 0.0
        self._number, self._seconds = 0, 0.0

    def see(self, seconds: Iterable[float], *, every_n_epochs: int) -> None:
        """Take note of certifications that training has just waited for.

        Args:
            seconds: What each of them took.
            every_n_epochs: How often they are.
        """
        for one in seconds:
            self._begin = self._begin if self._number else time.monotonic() - one
            self._number, self._seconds = self._number + 1, self._seconds + one
        training = time.monotonic() - self._begin - self._seconds
        if self._number == _LEAST_NUMBER and self._seconds >= max(_LEAST_SECONDS, _LARGE * training):
            rank_zero_warn(
                f"The first {_LEAST_NUMBER} certifications took {self._seconds:.0f} s, training between them "
                f"{max(training, 0.0):.1f} s. `every_n_epochs={10 * every_n_epochs}` certifies less often, a smaller "
                "`time_budget` shorter, and `background=True` while training goes on.",
                category=StrongDualWarning,
            )
