"""Dual objectives of training problems with one output, and what they look like near a point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

__all__ = ["AbstractDualObjective", "EntropyObjective", "NearbyObjective", "QuadraticObjective"]

FloatArray = NDArray[np.float64]

_LEAST_SHARE = 0.2  # of the distance to the boundary of the domain: what a step may leave
_NOTHING, _LITTLE = 1e-12, 1e-3  # of a sample's mass: where gradients and curvatures of the entropy stop growing
_BISECTIONS = 50


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NearbyObjective:
    r"""A concave quadratic: :math:`g'\lambda - \frac12 \sum_i q_i \lambda_i^2`, up to a constant, to be trusted in a box.

    Args:
        slopes: g (n,).
        curvatures: q (n,), nonnegative.
        steadiness: What a unit of distrust adds to the curvatures (n,), around the point that this was made for.
        lower: Of the box (n,); ``-inf`` for none.
        upper: Of the box (n,).
    """

    slopes: FloatArray
    curvatures: FloatArray
    steadiness: FloatArray
    lower: FloatArray
    upper: FloatArray


class AbstractDualObjective(ABC):
    """A concave function of the dual point (n,), plain float64: it steers a search and proves nothing."""

    @abstractmethod
    def value(self, duals: FloatArray) -> float:
        """Of a point in the domain."""

    @abstractmethod
    def scaled_value(self, duals: FloatArray, most: float) -> float:
        """Largest value of ``s * duals`` in the domain, ``0 <= s <= most``."""

    @abstractmethod
    def near(self, centre: FloatArray) -> NearbyObjective:
        """What it looks like near a point of the domain."""


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuadraticObjective(AbstractDualObjective):
    r"""Squared, Huber and absolute losses: :math:`y'\lambda - \frac q2 \|\lambda\|^2`, entries of at most ``slope_bound``.

    Args:
        targets: y (n,).
        curvature: q >= 0.
        slope_bound: ``inf`` for any entries.
    """

    targets: FloatArray
    curvature: float
    slope_bound: float

    def value(self, duals: FloatArray) -> float:
        """Of a point in the domain."""
        return float(self.targets @ duals) - 0.5 * self.curvature * float(duals @ duals)

    def scaled_value(self, duals: FloatArray, most: float) -> float:
        """Of the vertex of a parabola, if it may be that far out."""
        most = min(most, self.slope_bound / max(float(np.abs(duals).max(initial=0.0)), 1e-300))
        linear, quadratic = float(self.targets @ duals), self.curvature * float(duals @ duals)
        scale = most if quadratic * most <= linear else max(linear, 0.0) / quadratic
        return scale * linear - 0.5 * scale * scale * quadratic

    def near(self, centre: FloatArray) -> NearbyObjective:
        """Itself, wherever that is."""
        everywhere = np.ones(len(centre))
        return NearbyObjective(
            slopes=self.targets,
            curvatures=self.curvature * everywhere,
            steadiness=everywhere,
            lower=-self.slope_bound * everywhere,
            upper=self.slope_bound * everywhere,
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EntropyObjective(AbstractDualObjective):
    r"""The logistic loss: :math:`-\sum_i p_i \log(p_i / m_i) + r_i \log(r_i / m_i)`.

    :math:`p = a - \lambda \ge 0` and :math:`r = b + \lambda \ge 0` are what is left of the two classes, :math:`m = a + b`.

    Args:
        positive: a (n,), nonnegative.
        negative: b (n,), nonnegative.
    """

    positive: FloatArray
    negative: FloatArray

    def value(self, duals: FloatArray) -> float:
        """Of a point in the domain."""
        mass = np.maximum(self.positive + self.negative, 1e-300)
        parts = np.maximum(np.stack([self.positive - duals, self.negative + duals]), 0.0)
        return float(-(parts * np.log(np.maximum(parts / mass, 1e-300))).sum())

    def scaled_value(self, duals: FloatArray, most: float) -> float:
        """By bisection of the slope."""
        room = np.where(duals > 0, self.positive, self.negative)
        with np.errstate(divide="ignore", invalid="ignore"):
            most = min(most, float(np.min(np.where(duals != 0, room / np.abs(duals), np.inf), initial=np.inf)))
        if not np.isfinite(most):
            return self.value(np.zeros_like(duals))
        low, high = 0.0, most
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if float(self._slopes(middle * duals) @ duals) > 0 else (low, middle)
        return self.value(low * duals)

    def near(self, centre: FloatArray) -> NearbyObjective:
        """Its second-order expansion, to be trusted where no part of a sample loses more than four fifths."""
        mass = self.positive + self.negative
        first, last = np.maximum(self.positive - centre, 0.0), np.maximum(self.negative + centre, 0.0)
        least = np.maximum(_LITTLE * mass, 1e-300)
        curvatures = 1.0 / np.maximum(first, least) + 1.0 / np.maximum(last, least)
        return NearbyObjective(
            slopes=self._slopes(centre) + curvatures * centre,
            curvatures=curvatures,
            steadiness=curvatures,
            lower=centre - (1.0 - _LEAST_SHARE) * last,
            upper=centre + (1.0 - _LEAST_SHARE) * first,
        )

    def _slopes(self, duals: FloatArray) -> FloatArray:
        least = np.maximum(_NOTHING * (self.positive + self.negative), 1e-300)
        slopes: FloatArray = np.log(np.maximum(self.positive - duals, least)) - np.log(np.maximum(self.negative + duals, least))
        return slopes
