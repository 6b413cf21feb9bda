"""Losses of the relaxed training problem, in units in which dual points have norm about one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "AbstractRelaxedLoss",
    "HuberRelaxedLoss",
    "LogisticRelaxedLoss",
    "SoftmaxRelaxedLoss",
]

FloatArray = NDArray[np.float64]


class AbstractRelaxedLoss(ABC):
    """A convex loss of the outputs, of curvature one at most. It steers a search and proves nothing."""

    @abstractmethod
    def evaluate(self, outputs: FloatArray) -> tuple[float, FloatArray]:
        """The loss of outputs (n,) or (n, c), and the dual point: its negative gradient, of the same shape."""


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HuberRelaxedLoss(AbstractRelaxedLoss):
    """Half the square of ``F - y``, continued by lines where its slope is ``slope_bound``.

    Args:
        targets: y (n,) or (n, c), of norm about one.
        slope_bound: ``inf`` for the square.
    """

    targets: FloatArray
    slope_bound: float

    def evaluate(self, outputs: FloatArray) -> tuple[float, FloatArray]:
        """See :meth:`AbstractRelaxedLoss.evaluate`."""
        residual = self.targets - outputs
        dual: FloatArray = np.clip(residual, -self.slope_bound, self.slope_bound)
        return float(np.vdot(dual, residual) - 0.5 * np.vdot(dual, dual)), dual


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LogisticRelaxedLoss(AbstractRelaxedLoss):
    r"""``sum a log(1 + exp(-f)) + b log(1 + exp(f))`` over samples and outputs, of the logits ``f = base + output_unit F``.

    It is divided by the product of both units, so that dual points are those of the plain loss over ``dual_unit``.

    Args:
        positive: a (n, c), nonnegative.
        negative: b (n, c), nonnegative.
        base: Logits where the outputs are zero, shape (n, c).
        output_unit: Of the logits.
        dual_unit: Of the dual points.
    """

    positive: FloatArray
    negative: FloatArray
    base: FloatArray
    output_unit: float
    dual_unit: float

    def evaluate(self, outputs: FloatArray) -> tuple[float, FloatArray]:
        """See :meth:`AbstractRelaxedLoss.evaluate`."""
        logits = self.base + self.output_unit * outputs
        tail = np.exp(-np.abs(logits))
        larger = 1.0 / (1.0 + tail)
        on = np.where(logits >= 0.0, larger, tail * larger)  # the probability of the positive class
        dual: FloatArray = (self.positive * (1.0 - on) - self.negative * on) / self.dual_unit
        terms = np.log1p(tail) * (self.positive + self.negative)
        terms += self.positive * np.maximum(-logits, 0.0) + self.negative * np.maximum(logits, 0.0)
        return float(terms.sum()) / (self.output_unit * self.dual_unit), dual


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SoftmaxRelaxedLoss(AbstractRelaxedLoss):
    r"""``sum_i m_i log sum_k exp(f_ik) - <T_i, f_i>``, m the sums of the rows of T; units as in :class:`LogisticRelaxedLoss`.

    Args:
        targets: T (n, c), nonnegative.
        base: Logits where the outputs are zero, shape (n, c).
        output_unit: Of the logits.
        dual_unit: Of the dual points.
    """

    targets: FloatArray
    base: FloatArray
    output_unit: float
    dual_unit: float

    def evaluate(self, outputs: FloatArray) -> tuple[float, FloatArray]:
        """See :meth:`AbstractRelaxedLoss.evaluate`."""
        logits = self.base + self.output_unit * outputs
        logits -= logits.max(axis=1, keepdims=True)
        powers, masses = np.exp(logits), self.targets.sum(axis=1)
        sums = powers.sum(axis=1)
        dual: FloatArray = (self.targets - (masses / sums)[:, None] * powers) / self.dual_unit
        value = float(masses @ np.log(sums)) - float(np.vdot(self.targets, logits))
        return value / (self.output_unit * self.dual_unit), dual
