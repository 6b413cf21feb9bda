"""Two-layer oracles that need no local ascent first, because they see all maxima at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles.sphere_problem import SphereProblem
from torch_strongdual.certification.oracles.two_layer import AbstractTwoLayerOracle

__all__ = ["AbstractDirectOracle", "distinct_points"]

FloatArray = NDArray[np.float64]


class AbstractDirectOracle(AbstractTwoLayerOracle):
    """Base of the closed-form oracles: ``maximise`` takes ``|w|`` of one output as it is, without splitting it by sign."""

    def needs_ascent(self, problem: SphereProblem) -> bool:
        """Never."""
        return False


def distinct_points(points: FloatArray, values: FloatArray, number: int) -> FloatArray:  # (m, r), (m,)
    """The best ``number`` unit vectors with positive value, best first, no two closer than about two degrees.

    Example:
        >>> distinct_points(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1e-9]]), np.array([1.0, 2.0, 0.5]), 3)
        array([[0., 1.],
               [1., 0.]])
    """
    kept: list[FloatArray] = []
    for index in np.argsort(-values, kind="stable"):
        if len(kept) == number or not values[index] > 0:
            break
        if all(float(points[index] @ other) < 0.9995 for other in kept):
            kept.append(points[index])
    return np.array(kept).reshape(len(kept), points.shape[1])
