"""Reduction of a matrix to the coordinates of its row space, with a proven bound on what is lost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["UNIT_ROUNDOFF", "RowSpace", "divided_by_units", "in_units", "power_of_two_scale"]

FloatArray = NDArray[np.float64]

UNIT_ROUNDOFF = 2.0**-53


def power_of_two_scale(matrix: FloatArray) -> float:
    """Return the power of two that brings the largest entry of ``matrix`` into [1, 2); 1 for a zero or empty matrix.

    Example:
        >>> power_of_two_scale(np.array([[5.0, -0.1]]))
        4.0
    """
    largest = float(np.max(np.abs(matrix), initial=0.0))
    if largest == 0.0:
        return 1.0
    return math.ldexp(1.0, math.frexp(largest)[1] - 1)


def in_units(value: float, *units: float, round_up: bool = False) -> float:
    """``value`` times powers of two, safe at both ends of the range: exact, or rounded up where it underflows if asked for."""
    exponent = sum(math.frexp(unit)[1] - 1 for unit in units)
    try:
        result = math.ldexp(value, exponent)
    except OverflowError:
        return math.inf
    return math.nextafter(result, math.inf) if round_up and result < 1e-300 else result


def divided_by_units(value: float, *units: float) -> float:
    """``value`` over powers of two, safe at both ends of the range; ``inf`` where it overflows.

    Example:
        >>> divided_by_units(3e-310, 2.0**-1030, 1.0) == 3e-310 * 2.0**1000 * 2.0**30
        True
    """
    try:
        return math.ldexp(value, -sum(math.frexp(unit)[1] - 1 for unit in units))
    except OverflowError:
        return math.inf


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowSpace:
    r"""A matrix :math:`A \approx B V'` with few columns in :math:`B`, and proven bounds on the approximation.

    For every ``u`` in the unit ball, :math:`A u = B (V'u) + E u` with :math:`\|V'u\| \le` ``basis_norm`` and
    :math:`\|E\|_F \le` ``remainder``; both bounds include the rounding of their own evaluation. Coordinates are the
    principal axes of A, largest first.

    Args:
        rows: :math:`B` (n, r).
        basis: :math:`V` (d, r).
        basis_norm: Slightly above 1.
        remainder: Of the order of rounding, unless directions were dropped on purpose.
    """

    rows: FloatArray
    basis: FloatArray
    basis_norm: float
    remainder: float

    @property
    def rank(self) -> int:
        """Number of coordinates r."""
        return int(self.rows.shape[1])

    @classmethod
    def of(cls, matrix: FloatArray, *, drop_below: float | None = None) -> RowSpace:
        """Reduce ``matrix``; singular values under ``drop_below`` times the largest are dropped (default: rounding level).

        Example:
            >>> RowSpace.of(np.array([[1.0, 1.0], [2.0, 2.0]])).rank
            1
        """
        n, d = matrix.shape
        unit = power_of_two_scale(matrix)  # in which no square overflows, nor underflows where it matters
        matrix = matrix / unit
        _, singular, right = np.linalg.svd(matrix, full_matrices=False)
        floor = 4.0 * max(n, d) * UNIT_ROUNDOFF if drop_below is None else drop_below
        largest = float(singular[0]) if singular.size else 0.0
        keep = singular > floor * largest
        basis = np.ascontiguousarray(right[keep].T)
        rows = np.ascontiguousarray(matrix @ basis)
        rank = rows.shape[1]
        # |fl(A - B V') - (A - B V')| <= gamma_{r+2} (|A| + |B| |V|'), entry by entry; Frobenius norms bound the sum.
        gamma = 2.0 * (rank + 4) * UNIT_ROUNDOFF
        norm_of_rows = float(np.linalg.norm(rows))
        evaluated = float(np.linalg.norm(matrix - rows @ basis.T))
        rounding = gamma * (float(np.linalg.norm(matrix)) + norm_of_rows * float(np.linalg.norm(basis)))
        summing = 1.0 + 4.0 * (n * d + 4) * UNIT_ROUNDOFF
        orthogonality = float(np.linalg.norm(basis.T @ basis - np.eye(rank))) + 2.0 * (d + 4) * UNIT_ROUNDOFF * rank
        return cls(
            rows=rows * unit,
            basis=basis,
            basis_norm=math.sqrt(1.0 + orthogonality * summing) * (1.0 + 4 * UNIT_ROUNDOFF),
            remainder=in_units((evaluated + rounding) * summing, unit, round_up=True),
        )

    def loss_of_reduction(self, sample_slopes: FloatArray) -> float:  # shape: (n,)
        """Bound on ``|sum_i f_i((A u)_i) - f_i((B V'u)_i)|`` over the unit ball for functions of these Lipschitz constants."""
        return float(np.linalg.norm(sample_slopes)) * self.remainder * (1.0 + 4.0 * (len(sample_slopes) + 4) * UNIT_ROUNDOFF)
