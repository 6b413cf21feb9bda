"""What tightness to expect of each oracle for hard two-layer problems, from measurements: for choosing, never for proving."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch_strongdual.certification.oracles._choice.measured_looseness import MEASURED

__all__ = ["SMALLEST_LOOSENESS", "expected_looseness", "measured_seconds"]

SMALLEST_LOOSENESS = 0.01  # no measurement asked for more
_REACHED = 1.05 * SMALLEST_LOOSENESS
_SLOWEST = 0.05  # least and largest exponent of time that measurements are extended by
_FASTEST = 1.0


def expected_looseness(oracle: str, *, rank: float, num_rows: int, seconds: float, hardness: float = 1.0) -> float:
    """Estimate of ``upper / lower - 1`` that ``oracle`` reaches in ``seconds`` of one thread, at one output; at least 1 %.

    Ranks and numbers of rows between those measured are interpolated, others taken for the nearest; ``inf`` for an oracle that
    was not measured there. A problem for which one oracle turns out looser than on those measured is so for all of them, by
    about the same factor.

    Args:
        oracle: Name of its class.
        rank: Of the inputs, or how many of their principal axes count.
        num_rows: Samples.
        seconds: Time it will have.
        hardness: How much looser than measured some oracle turned out.

    Example:
        >>> small = expected_looseness("BoxBranchAndBound", rank=8, num_rows=50, seconds=60.0)
        >>> large = expected_looseness("BoxBranchAndBound", rank=12, num_rows=1000, seconds=60.0)
        >>> small < large
        True
    """
    ranks = sorted({row[1] for row in MEASURED if row[0] == oracle})
    if not ranks:
        return math.inf

    def at(some_rank: int) -> float:
        sizes = sorted({row[2] for row in MEASURED if row[:2] == (oracle, some_rank)})
        values = [_in_time(oracle, some_rank, size, seconds) for size in sizes]
        if num_rows > 1.5 * sizes[-1] and sizes[-1] < max(row[2] for row in MEASURED):
            return math.inf
        return _interpolated([math.log(size) for size in sizes], values, math.log(num_rows))

    usual = _interpolated([float(some_rank) for some_rank in ranks], [at(some_rank) for some_rank in ranks], rank)
    return hardness * usual if hardness * usual > _REACHED else SMALLEST_LOOSENESS


def measured_seconds(oracle: str, *, rank: float, num_rows: int) -> float:
    """Estimate of the time in which ``oracle`` reaches the least looseness measured; infinite where it did not.

    Args:
        oracle: Name of its class.
        rank: Of the inputs, or how many of their principal axes count.
        num_rows: Samples.

    Example:
        >>> small = measured_seconds("BoxBranchAndBound", rank=8, num_rows=50)
        >>> small < measured_seconds("BoxBranchAndBound", rank=9, num_rows=50)
        True
    """
    reached = [row for row in MEASURED if row[0] == oracle and row[4] <= _REACHED]
    near = [row for row in reached if row[1] >= math.floor(rank) and row[2] >= num_rows / 1.5]
    return min((row[3] for row in near), default=math.inf)


def _in_time(oracle: str, rank: int, num_rows: int, seconds: float) -> float:
    """Power law through the measurements at one size, in the time they took."""
    runs = [(row[3], row[4]) for row in MEASURED if row[:3] == (oracle, rank, num_rows)]
    if len(runs) == 1:
        time, looseness = runs[0]
        return looseness if seconds >= time else looseness * math.sqrt(time / max(seconds, 1e-3))
    (before, loose), (after, tight) = runs[0], runs[-1]
    if after <= before:  # it ends by itself: more time is of no use
        return tight
    exponent = min(max(math.log(loose / tight) / math.log(after / before), _SLOWEST), _FASTEST)
    return max(tight * math.pow(after / max(seconds, 1e-3), exponent), SMALLEST_LOOSENESS)


def _interpolated(places: Sequence[float], values: Sequence[float], place: float) -> float:
    """Between the nearest places, linearly in the logarithm of the values; beyond the ends, the value there."""
    if place <= places[0]:
        return values[0]
    for (left, low), (right, high) in zip(
        zip(places, values, strict=True), zip(places[1:], values[1:], strict=True), strict=False
    ):
        if place <= right:
            if math.isinf(low) or math.isinf(high):
                return high if place - left > right - place else low
            share = (place - left) / (right - left)
            return math.exp((1.0 - share) * math.log(low) + share * math.log(high))
    return values[-1]
