"""Limited-memory BFGS with backtracking, for smooth functions of some ten thousand variables that cost a millisecond."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["LimitedMemory"]

FloatArray = NDArray[np.float64]

_PAIRS = 10
_FIRST_STEP = 0.1  # of the norm of the point
_DECREASE = 1e-4  # of what the slope promises
_SHORTEST = 1e-12
_FLAT = 1e-24  # squares of gradients and products of steps and changes this small are rounding of functions of size one


class LimitedMemory:
    """Minimises functions that change little from one call to the next: curvature learnt from one is used for the next.

    Args:
        size: Number of variables.

    Example:
        >>> def parabola(point):
        ...     return 0.5 * float(point @ point), point.copy()
        >>> bool(np.abs(LimitedMemory(3).minimise(parabola, np.ones(3), num_steps=5)).max() < 1e-8)
        True

    References:
        Nocedal, Wright, "Numerical Optimization", algorithm 7.4.
    """

    def __init__(self, size: int) -> None:
        self._steps, self._changes = np.zeros((_PAIRS, size)), np.zeros((_PAIRS, size))
        self._inverses = np.zeros(_PAIRS)
        self._number = 0

    def minimise(
        self,
        function: Callable[[FloatArray], tuple[float, FloatArray]],
        point: FloatArray,
        *,
        num_steps: int,
        is_over: Callable[[], bool] = lambda: False,
    ) -> FloatArray:
        """Take ``num_steps`` steps of decrease from ``point``, or fewer where there is none, or time ``is_over``."""
        value, gradient = function(point)
        for _ in range(num_steps):
            if is_over() or not math.isfinite(value) or float(gradient @ gradient) <= _FLAT:
                break
            direction = self._direction(gradient)
            slope = float(gradient @ direction)
            if not slope < 0.0:
                self._number, direction, slope = 0, -gradient, -float(gradient @ gradient)
            length = 1.0
            if not self._number:
                length = min(1.0, _FIRST_STEP * (float(np.linalg.norm(point)) or 1.0) / max(math.sqrt(-slope), 1e-300))
            while True:
                trial = point + length * direction
                reached, changed = function(trial)
                if reached <= value + _DECREASE * length * slope:
                    break
                if length < _SHORTEST:
                    return point
                bent = -0.5 * slope * length**2 / (reached - value - length * slope)
                length = min(max(bent, 0.1 * length), 0.5 * length) if math.isfinite(bent) else 0.1 * length
            self._learn(trial - point, changed - gradient)
            point, value, gradient = trial, reached, changed
        return point

    def _learn(self, step: FloatArray, change: FloatArray) -> None:
        curvature = float(step @ change)
        if curvature > max(_FLAT**2, 1e-10 * math.sqrt(float(step @ step) * float(change @ change))):
            slot = self._number % _PAIRS
            self._steps[slot], self._changes[slot], self._inverses[slot] = step, change, 1.0 / curvature
            self._number += 1

    def _direction(self, gradient: FloatArray) -> FloatArray:
        """Minus the inverse Hessian, as far as it is known, times the gradient."""
        from scipy.linalg.blas import daxpy  # in place, where numpy makes a copy for every term

        result = -gradient
        slots = [k % _PAIRS for k in range(max(0, self._number - _PAIRS), self._number)]
        shares = {}
        for slot in reversed(slots):
            shares[slot] = self._inverses[slot] * float(self._steps[slot] @ result)
            daxpy(self._changes[slot], result, a=-shares[slot])
        if slots:
            last = slots[-1]
            result *= 1.0 / (self._inverses[last] * float(self._changes[last] @ self._changes[last]))
        for slot in slots:
            share = shares[slot] - self._inverses[slot] * float(self._changes[slot] @ result)
            daxpy(self._steps[slot], result, a=share)
        return result
