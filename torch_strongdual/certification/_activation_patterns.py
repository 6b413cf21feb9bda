"""Activation patterns of hidden units, and the sides of samples that a program over first layers has to know of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_ROUNDS", "VIOLATION", "activation_patterns", "near_samples"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_ON_KINK = 1e-7
_NEAR = 0.02

#: Solve with the constraints of near samples, add those that turn out violated, and solve again: at most so often.
MOST_ROUNDS = 8
#: Relative to the largest first layer.
VIOLATION = 1e-9


def activation_patterns(
    rows: FloatArray,  # shape: (num_samples, rank)
    points: FloatArray,  # shape: (number, rank)
    slopes: FloatArray,  # shape: (number, num_samples)
) -> BoolArray:  # shape: (number, num_samples)
    """Which samples are active; on a kink those that the branch gains by (``slopes``, the residual along its output).

    Args:
        rows: Coordinates of the samples.
        points: First layers.
        slopes: Only their signs matter.
    """
    hidden = points @ rows.T
    sizes = np.linalg.norm(points, axis=1)[:, None] * np.linalg.norm(rows, axis=1)
    patterns: BoolArray = np.where(np.abs(hidden) <= _ON_KINK * sizes, slopes > 0.0, hidden > 0.0)
    return patterns


def near_samples(
    points: FloatArray,  # shape: (number, rank)
    normals: FloatArray,  # shape: (num_samples, rank)
) -> BoolArray:  # shape: (number, num_samples)
    """Samples whose kink is near a first layer: some, and all that are almost on it.

    Args:
        points: First layers.
        normals: Unit vectors along the samples (or zero).
    """
    sizes = np.linalg.norm(points, axis=1)[:, None]
    slack = np.abs(points @ normals.T) / np.where(sizes > 0, sizes, 1.0)
    nearest = np.sort(slack, axis=1)[:, min(2 * points.shape[1], slack.shape[1] - 1)][:, None]
    near: BoolArray = slack <= np.maximum(nearest, _NEAR)
    return near
