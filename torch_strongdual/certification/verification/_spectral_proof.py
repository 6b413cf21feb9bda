r"""Spectral norms by exact integers: ``||M|| <= b`` if and only if ``b^2 I - M'M`` is positive semidefinite.

Definiteness is decided by the signs of the leading minors, found by fraction-free elimination (Bareiss): no
decomposition, no rounding.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.verification._feasibility import Feasibility

__all__ = ["spectral_feasibility"]

FloatArray = NDArray[np.float64]
Integers = NDArray[np.object_]

_MAX_SIZE = 48
_MAX_PRODUCTS = 30_000_000
_METHOD = "signs of leading minors in exact integer arithmetic"


def spectral_feasibility(
    matrix: FloatArray,  # (num_samples, in_features)
    duals: FloatArray,  # (num_samples, out_features)
    masks: FloatArray | None,  # (num_masks, num_samples), of 0 and 1
    limit_squared: Fraction,
) -> Feasibility:
    r"""Decide whether ``||X' D_k Lam||_2^2 <= limit_squared`` for every mask ``D_k``."""
    size = min(matrix.shape[1], duals.shape[1])
    distinct = np.ones((1, len(matrix))) if masks is None else np.unique(masks, axis=0)
    if size > _MAX_SIZE:
        return Feasibility(holds=None, method=_METHOD, reason=f"Exact minors of order {size} are out of reach.")
    if len(distinct) * matrix.size * duals.shape[1] > _MAX_PRODUCTS:
        return Feasibility(holds=None, method=_METHOD, reason="There are too many numbers for exact arithmetic.")
    inputs, first = _integers(matrix)
    points, second = _integers(duals)
    upper = 0.0
    for mask in distinct:
        rows = np.flatnonzero(mask)
        product = inputs[rows].T @ points[rows] if len(rows) else np.zeros((matrix.shape[1], duals.shape[1]), dtype=object)
        product = product if product.shape[0] >= product.shape[1] else product.T
        gram = product.T @ product
        unit = Fraction(2) ** (2 * (first + second))
        holds = _is_at_most(gram, limit_squared / unit)
        if not holds:
            reason = "The dual norm exceeds its limit." if holds is False else "A minor vanishes: the signs do not decide."
            return Feasibility(holds=holds, method=_METHOD, reason=reason)
        upper = max(upper, _smallest_proven(gram, limit_squared / unit, unit))
    return Feasibility(holds=True, upper=upper, method=_METHOD)


def _integers(matrix: FloatArray) -> tuple[Integers, int]:
    """Integers and the exponent of the power of two that multiplies them all; nothing is rounded."""
    parts = [[math.frexp(entry) for entry in row] for row in matrix.tolist()]
    least = min((exponent - 53 for row in parts for mantissa, exponent in row if mantissa), default=0)
    whole = [
        [int(math.ldexp(mantissa, 53)) << (exponent - 53 - least) if mantissa else 0 for mantissa, exponent in row]
        for row in parts
    ]
    result = np.empty(matrix.shape, dtype=object)
    result[...] = whole
    return result, least


def _is_at_most(gram: Integers, limit: Fraction) -> bool | None:
    """Whether ``limit * I - gram`` is positive semidefinite; ``None`` if a minor before the last one is zero."""
    size = len(gram)
    scaled = -gram * limit.denominator
    for k in range(size):
        scaled[k, k] += limit.numerator
    previous = 1
    for k in range(size):
        pivot = int(scaled[k, k])
        if pivot <= 0:
            return False if pivot < 0 else True if k == size - 1 else None
        for i in range(k + 1, size):
            for j in range(k + 1, size):
                scaled[i, j] = (scaled[i, j] * pivot - scaled[i, k] * scaled[k, j]) // previous
        previous = pivot
    return True


def _smallest_proven(gram: Integers, limit: Fraction, unit: Fraction) -> float:
    """A float64 bound on the norm close to it: the limit itself, or less where that can be proven."""
    largest = max((abs(int(entry)) for entry in gram.ravel()), default=0)
    if largest == 0:
        return 0.0
    shrunk = np.array([[float(Fraction(int(entry), largest)) for entry in row] for row in gram])
    estimate = Fraction(max(float(np.linalg.eigvalsh(shrunk)[-1]), 0.0)) * largest
    for exponent in (-46, -40, -30):
        tried = estimate * (1 + Fraction(2) ** exponent)
        if tried < limit and _is_at_most(gram, tried):
            return root_up(tried * unit)
    return root_up(limit * unit)


def root_up(square: Fraction) -> float:
    """A float64 not below the square root, for squares in any range; ``inf`` on overflow."""
    if square <= 0:
        return 0.0
    shift = 128 - (square.numerator.bit_length() - square.denominator.bit_length()) // 2
    scaled = square * Fraction(4) ** shift
    root = Fraction(math.isqrt(scaled.numerator // scaled.denominator) + 1) / Fraction(2) ** shift
    try:
        return math.nextafter(float(root), math.inf)
    except OverflowError:
        return math.inf
