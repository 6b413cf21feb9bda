"""Dual norms of several outputs from those of single output directions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._verified_psd import gamma

__all__ = ["norm_from_directions", "output_directions"]

FloatArray = NDArray[np.float64]

_NUM_SECTORS = 8  # even; the cover of the half circle loses a factor of 1 / cos(pi / 16) = 1.0196


def output_directions(num_outputs: int) -> FloatArray:  # shape: (k, num_outputs)
    """Unit vectors for :func:`norm_from_directions`: the axes; for two outputs a fan over the half circle."""
    if num_outputs != 2:
        return np.eye(num_outputs)
    angles = np.arange(_NUM_SECTORS) * (math.pi / _NUM_SECTORS)
    fan = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    fan[0], fan[_NUM_SECTORS // 2] = (1.0, 0.0), (0.0, 1.0)
    return fan


def norm_from_directions(bounds: FloatArray, num_outputs: int) -> float:
    r"""Upper bound on :math:`\max_{\|v\| = 1} \kappa(\Lambda v)` from bounds along :func:`output_directions`.

    :math:`\|\Lambda'\phi\|^2 = \sum_j (\Lambda_j'\phi)^2 \le \sum_j \kappa(\Lambda_j)^2` for any branches.
    :math:`\kappa(\Lambda v)` is even and sublinear in v; for two outputs a direction between neighbours
    :math:`\delta` apart is :math:`v = a v_j + b v_{j+1}` with :math:`a, b \ge 0` and :math:`a + b \le 1/\cos(\delta/2)`.

    Example:
        >>> norm_from_directions(np.array([3.0, 4.0, 0.0]), 3) - 5.0 < 1e-12
        True
    """
    allowance = 1.0 + gamma(len(bounds) + 64)
    if num_outputs != 2:
        return math.sqrt(float(bounds @ bounds)) * allowance
    axes = math.hypot(float(bounds[0]), float(bounds[_NUM_SECTORS // 2]))
    fan = float(bounds.max()) / math.cos(0.5 * math.pi / _NUM_SECTORS)
    return min(axes, fan) * allowance
