"""Polynomials of degree four above and below the absolute value on [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST_TOUCH", "Shapes", "best_touches", "even_quartics"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

LEAST_TOUCH = 0.01  # smaller ones cost more in rounding than they can gain


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shapes:
    r"""Which polynomials bound the absolute value: ``share * q(t) + tilt * t``, q the even quartic that touches at ``touch``.

    Above, the share is 1 and the tilt 0. Below, :math:`|tilt| + share \le 1` suffices, because
    :math:`|t| \ge \pm t` and :math:`|t| \ge q(t)`; a tilt pays where the sign of t is all but known.

    Args:
        touches: In [``LEAST_TOUCH``, 1] (n,).
        shares: In [0, 1] (n,).
        tilts: In [-1, 1] (n,).
    """

    touches: FloatArray
    shares: FloatArray
    tilts: FloatArray

    @classmethod
    def of(cls, touches: FloatArray, shares: FloatArray, leanings: FloatArray, is_above: BoolArray) -> Shapes:
        """From tilts in units of what the shares leave; everything is brought into its range, rounding included."""
        shares = np.where(is_above, 1.0, np.clip(shares, 0.0, 1.0))
        # 1 - share is rounded once, and so is the product: stay clear of the limit.
        tilts = (1.0 - shares) * np.clip(leanings, -1.0, 1.0) * (1.0 - 2.0**-50)
        return cls(touches=np.clip(touches, LEAST_TOUCH, 1.0), shares=shares, tilts=np.where(is_above, 0.0, tilts))


def even_quartics(touches: FloatArray, is_above: BoolArray) -> tuple[FloatArray, FloatArray]:  # (n,) -> 2 x (3, n)
    r"""Coefficients of :math:`1, t^2, t^4` of the quartics touching at :math:`\alpha`, and their derivatives by its logarithm.

    They are the Hermite interpolants of :math:`\sqrt s` in :math:`s = t^2`, at the double node :math:`\alpha^2` and the node 1
    (above), or 0 (below). What is left is seen to have one sign: with :math:`0 < \alpha`, :math:`0 \le t = |t| \le 1`,

    .. math:: p_{above}(t) - t = \frac{(t-\alpha)^2}{2\alpha}\Bigl(1 - \frac{(t+\alpha)^2}{(1+\alpha)^2}\Bigr) \ge 0,
              \qquad t - p_{below}(t) = \frac{t\,(t-\alpha)^2 (t+2\alpha)}{2 \alpha^3} \ge 0.

    Written out, nothing cancels, so that each computed coefficient has a relative error of at most twelve roundings:

    .. math:: p_{above} = \frac{\alpha(1+2\alpha)}{2(1+\alpha)^2} + \frac{(1+\alpha)^2+2\alpha^2}{2\alpha(1+\alpha)^2} t^2
              - \frac{t^4}{2\alpha(1+\alpha)^2},\qquad p_{below} = \frac{3t^2}{2\alpha} - \frac{t^4}{2\alpha^3}.

    Args:
        touches: :math:`\alpha`, in [``LEAST_TOUCH``, 1].
        is_above: Which kind, for each.

    Example:
        >>> values, _ = even_quartics(np.array([1.0, 1.0]), np.array([True, False]))
        >>> values.T
        array([[ 0.375,  0.75 , -0.125],
               [ 0.   ,  1.5  , -0.5  ]])
    """
    a, wide = touches, (1.0 + touches) ** 2
    above = np.stack([a * (1.0 + 2.0 * a) / (2.0 * wide), (wide + 2.0 * a * a) / (2.0 * a * wide), -1.0 / (2.0 * a * wide)])
    cube = wide * (1.0 + a)
    above_slopes = np.stack(
        [
            a * (1.0 + 3.0 * a) / (2.0 * cube),
            -1.0 / (2.0 * a) + a * (1.0 - a) / cube,
            (1.0 + 3.0 * a) / (2.0 * a * cube),
        ]
    )
    zero = np.zeros_like(a)
    below = np.stack([zero, 1.5 / a, -0.5 / a**3])
    below_slopes = np.stack([zero, -1.5 / a, 1.5 / a**3])
    return np.where(is_above, above, below), np.where(is_above, above_slopes, below_slopes)


def best_touches(second: FloatArray, fourth: FloatArray, is_above: BoolArray) -> FloatArray:  # (n,) -> (n,)
    """Where the quartic of least (greatest) mean touches, for second and fourth moments of ``t``."""
    below = np.sqrt(np.maximum(fourth, 0.0) / np.maximum(second, np.finfo(np.float64).tiny))
    grid = np.geomspace(LEAST_TOUCH, 1.0, 60)
    coefficients, _ = even_quartics(grid, np.ones(len(grid), dtype=np.bool_))
    least, above = np.full(len(second), np.inf), np.ones(len(second))
    for touch, (constant, square, power) in zip(grid, coefficients.T, strict=True):
        mean = constant + square * second + power * fourth
        above[mean < least] = touch
        least = np.minimum(least, mean)
    return np.clip(np.where(is_above, above, below), LEAST_TOUCH, 1.0)
