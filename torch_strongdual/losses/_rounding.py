"""Floating point arithmetic that proves: error-free transformations, directed sums and quotients, distances.

Everything is float64 NumPy. Assumed of the machine: IEEE arithmetic, rounding to nearest, and ``log``, ``log1p``, ``exp``
to eight units in the last place (all libraries in use promise four).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FUNCTION_ERROR",
    "TINY",
    "UNIT",
    "Array",
    "exact_product",
    "exact_sum",
    "quotient_down",
    "row_distances",
    "sum_down",
    "sum_up",
]

Array = NDArray[np.float64]

UNIT = 2.0**-53
"""Unit roundoff: one correctly rounded operation has at most this relative error."""

FUNCTION_ERROR = 16 * UNIT
"""Relative error allowed for ``log``, ``log1p`` and ``exp``."""

TINY = 2.0**-1000
"""Exceeds what underflow can do to one term by a factor of 2**70, and is nothing beside any other error."""

_SPLITTER = 2.0**27 + 1.0


def _halves(values: Array) -> tuple[Array, Array]:
    """Veltkamp's splitting into a high and a low part of 26 bits each."""
    shifted = _SPLITTER * values
    high = shifted - (shifted - values)
    return high, values - high


def exact_product(left: Array, right: Array | float) -> tuple[Array, Array]:
    """Product and its rounding error, whose sum is the exact product but for underflow (Dekker 1971)."""
    right = np.asarray(right, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        product = left * right
        left_high, left_low = _halves(left)
        right_high, right_low = _halves(right)
        error = ((left_high * right_high - product) + left_high * right_low + left_low * right_high) + left_low * right_low
    return product, error


def exact_sum(left: Array, right: Array) -> tuple[Array, Array]:
    """Sum and its rounding error, whose sum is the exact sum (Knuth 1969)."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = left + right
        virtual = total - left
        error = (left - (total - virtual)) + (right - virtual)
    return total, error


def quotient_down(numerator: Array, divisor: float) -> Array:
    """Largest float64 not above ``numerator / divisor``, for ``numerator >= 0`` (zero below 2**-900)."""
    quotient: Array = np.asarray(numerator / divisor)
    product, error = exact_product(quotient, divisor)
    is_above = (product > numerator) | ((product == numerator) & (error > 0))
    quotient = np.where(is_above, np.nextafter(quotient, -np.inf), quotient)
    quotient = np.where(np.isinf(numerator), numerator, quotient)
    return np.where(quotient < 2.0**-900, 0.0, quotient)


def _correctly_rounded_sum(terms: Array) -> float:
    try:
        return math.fsum(terms.ravel().tolist())
    except (OverflowError, ValueError):
        return math.nan


def sum_down(*terms: Array) -> float:
    """Lower bound on the exact sum of all terms, one unit in the last place away; ``-inf`` if it cannot be formed."""
    total = _correctly_rounded_sum(np.concatenate([np.ravel(part) for part in terms]))
    return math.nextafter(total, -math.inf) if math.isfinite(total) else -math.inf


def sum_up(*terms: Array) -> float:
    """Upper bound on the exact sum of all terms, one unit in the last place away; ``inf`` if it cannot be formed."""
    total = _correctly_rounded_sum(np.concatenate([np.ravel(part) for part in terms]))
    return math.nextafter(total, math.inf) if math.isfinite(total) else math.inf


def row_distances(left: Array, right: Array) -> Array:
    """Upper bounds on the Euclidean distances of the rows of two matrices; 0 only where the rows are equal."""
    difference = np.abs(left - right)
    largest = difference.max(axis=1, initial=0.0)
    safe = np.where(largest > 0, largest, 1.0)
    # Differences of floats are exact or have relative error UNIT, each of the c squares and sums adds a few more.
    widening = 1.0 + (8 + 4 * difference.shape[1]) * UNIT
    distances: Array = largest * np.sqrt(np.square(difference / safe[:, None]).sum(axis=1)) * widening
    # Below TINY the arithmetic above is coarse: use a bound on what can be there.
    return np.where(largest > 0, np.maximum(distances, difference.shape[1] * TINY), 0.0)
