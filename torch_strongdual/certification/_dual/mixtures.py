"""Dual points between one that is easy to bound and one that is worth most."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["Mixtures"]

# Half way from the settled point to the residual makes a search so many times longer, about; steps are chosen to take that
# share of the time left, and are not worth it if they are short.
_HARDER, _HOPE, _LEAST_STEP = 4.0, 0.6, 0.1


class Mixtures:
    """Which points between a settled joint dual point and a residual to bound next: towards the residual, as time allows.

    The settled point was chosen for a relaxation that is looser than boxes: they often bound it far below the limit, and in
    little time. The residual would be best if its dual norm were known, but is the hardest to bound. In between, what is
    proven gets better and takes longer: on residuals of rank eight to ten half way took about four times as long.
    """

    def __init__(self) -> None:
        self._share, self._seconds = 1.0, 0.0  # of the settled point in the last one, and how long its search took
        self._point: Tensor | None = None
        self._is_met = False

    def next_between(self, near: Tensor, settled: Tensor, seconds: float) -> Tensor | None:
        """The point to bound, the same as before if it is to be gone on with; ``None`` if there is no time for another."""
        if self._is_met:
            step = 0.5 * math.log(max(_HOPE * seconds, 1e-9) / max(self._seconds, 1e-3)) / math.log(_HARDER)
            if step < _LEAST_STEP:
                return None
            self._share -= min(step, 0.5 * self._share)
            self._point, self._seconds, self._is_met = None, 0.0, False
        if self._point is None:
            self._point = torch.lerp(near, settled, self._share)  # exact at both ends
        return self._point

    def learn(self, *, seconds: float, is_met: bool) -> None:
        """How long the last point took, and whether it was bounded as well as was asked for."""
        self._seconds += seconds
        self._is_met = is_met
