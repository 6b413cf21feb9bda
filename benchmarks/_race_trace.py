"""What a method had found at which time, measured by the same function for all."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from benchmarks._race_instances import RaceInstance
from torch_strongdual.certification import Deadline

__all__ = ["Point", "Trace", "objective"]

FloatArray = NDArray[np.float64]

_APART = 1.02  # keep a network only if this much time has passed since the last one kept


def objective(instance: RaceInstance, first: FloatArray, last: FloatArray) -> float:
    """Training objective of a network, in float64.

    Args:
        instance: The problem.
        first: Rows u_k, (number, d).
        last: Rows v_k, (number, c).
    """
    outputs = np.maximum(instance.inputs @ first.astype(np.float64).T, 0.0) @ last.astype(np.float64)
    if instance.loss == "squared":
        loss = 0.5 * float(((outputs - instance.targets) ** 2).sum())
    else:
        loss = float((logsumexp(outputs, axis=1) - (instance.targets * outputs).sum(axis=1)).sum())
    return loss + instance.decay * float((np.linalg.norm(first, axis=1) * np.linalg.norm(last, axis=1)).sum())


@dataclass(frozen=True, kw_only=True)
class Point:
    """Best objective and bound known at a time."""

    seconds: float
    objective: float
    bound: float


@dataclass(kw_only=True)
class Trace:
    """Networks and bounds as a method finds them; objectives are computed afterwards, outside of its time.

    Args:
        method: Its name.
        note: Why it did not run, or ended early.
    """

    method: str
    note: str = ""
    seconds: float = 0.0
    _found: list[tuple[float, FloatArray, FloatArray, float]] = field(default_factory=list)

    def record(
        self, clock: Deadline, first: FloatArray, last: FloatArray, *, bound: float = -math.inf, always: bool = False
    ) -> None:
        """Note a network; methods of many cheap steps may call this at each one."""
        now = clock.elapsed
        if always or not self._found or now >= _APART * self._found[-1][0] + 1e-3:
            self._found.append((now, first.copy(), last.copy(), bound))

    @property
    def last(self) -> tuple[FloatArray, FloatArray]:
        """The last network kept."""
        return self._found[-1][1:3]

    def points(self, instance: RaceInstance) -> list[Point]:
        """Best so far at each time."""
        points: list[Point] = []
        best, bound = math.inf, -math.inf
        for seconds, first, last, proven in self._found:
            best, bound = min(best, objective(instance, first, last)), max(bound, proven)
            points.append(Point(seconds=seconds, objective=best, bound=bound))
        return points
