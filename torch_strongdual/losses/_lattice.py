r"""Points that satisfy sums and bounds *exactly*, as float64 matrices.

Sums of arbitrary floats cannot be made zero by float arithmetic, sums of integers can. A matrix is rounded to integer multiples
of a power of two, 2**-52 of its largest entry, so that float64 holds each multiple exactly; the integers are moved inside
their bounds, and the few units by which a sum is off are taken from entries that are far from their bounds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.losses._rounding import Array

__all__ = ["exactly_feasible"]

_Lattice = NDArray[np.int64]

_RTOL = 1e-12  # what is farther outside than this was not rounded but wrong
_LATTICE_BITS = 52
_LARGEST = 2.0**53  # beyond it float64 does not hold every integer
_SMALLEST_EXPONENT = -900  # groups of entries below 2**-900 are replaced by zeros


def exactly_feasible(
    point: Array,  # shape: (num_samples, out_features)
    lower: Array,
    upper: Array,
    *,
    magnitude: Array,
    zero_rows: bool,
    zero_columns: bool,
) -> Array | None:
    """The point near ``point`` that lies between its bounds and whose sums are zero, all exactly.

    Args:
        point: Feasible up to rounding.
        lower: Bounds, at most 0; ``-inf`` where there is none. Must be ``-inf`` if rows and columns are both to be balanced.
        upper: Bounds, at least 0.
        magnitude: What rounding errors are relative to, for each entry.
        zero_rows: Whether rows have to sum to zero.
        zero_columns: Whether columns have to sum to zero.

    Returns:
        The point, or ``None`` if ``point`` is farther from feasible than rounding explains.
    """
    if not (np.isfinite(point).all() and _is_nearly_feasible(point, lower, upper, magnitude, zero_rows, zero_columns)):
        return None
    if not (zero_rows or zero_columns):
        return np.clip(point, lower, upper)
    shift = _shifts(point, zero_rows, zero_columns)
    with np.errstate(over="ignore"):
        largest = np.floor(np.minimum(np.ldexp(upper, shift), _LARGEST)).astype(np.int64)
        smallest = np.ceil(np.maximum(np.ldexp(lower, shift), -_LARGEST)).astype(np.int64)
        lattice = np.rint(np.ldexp(point, shift)).astype(np.int64)
    lattice = np.clip(lattice, smallest, largest)
    if zero_rows:
        _balance_rows(lattice, largest)
        is_balanced = not zero_columns or _balance_columns_keeping_rows(lattice, largest)
    else:
        is_balanced = _balance_columns(lattice, smallest, largest)
    feasible: Array = np.ldexp(lattice.astype(np.float64), -shift)
    return feasible if is_balanced and _holds_exactly(lattice, smallest, largest, zero_rows, zero_columns) else None


def _is_nearly_feasible(
    point: Array, lower: Array, upper: Array, magnitude: Array, zero_rows: bool, zero_columns: bool
) -> bool:
    is_inside = bool((np.maximum(lower - point, point - upper) <= _RTOL * magnitude.max()).all())
    for axis, is_wanted in ((1, zero_rows), (0, zero_columns)):
        if is_wanted:
            is_inside &= bool((np.abs(point.sum(axis=axis)) <= _RTOL * magnitude.sum(axis=axis)).all())
    return is_inside


def _shifts(point: Array, zero_rows: bool, zero_columns: bool) -> NDArray[np.int32]:
    """Binary digits to shift by, one for each group of entries that no sum connects with another group."""
    axis = None if zero_rows and zero_columns else (1 if zero_rows else 0)
    largest = np.abs(point).max(axis=axis, keepdims=True)
    _, exponents = np.frexp(largest)
    exponents = np.maximum(np.where(largest > 0, exponents, 0), _SMALLEST_EXPONENT).astype(np.int32)
    return np.broadcast_to(_LATTICE_BITS - exponents, point.shape).astype(np.int32)


def _holds_exactly(lattice: _Lattice, smallest: _Lattice, largest: _Lattice, zero_rows: bool, zero_columns: bool) -> bool:
    # Integer sums wrap around modulo 2**64, so those that come out small are exact: the totals were checked to be small.
    holds = bool(((smallest <= lattice) & (lattice <= largest) & (np.abs(lattice) <= _LARGEST)).all())
    holds &= not zero_rows or not lattice.sum(axis=1).any()
    return holds and (not zero_columns or not lattice.sum(axis=0).any())


def _balance_rows(lattice: _Lattice, largest: _Lattice) -> None:
    """Take what each row sums to from its entry farthest below its bound; lowering is free, raising needs room."""
    rows = np.arange(len(lattice))
    for _ in range(lattice.shape[1]):
        excess = lattice.sum(axis=1)
        if not excess.any():
            return
        room = largest - lattice
        roomiest = room.argmax(axis=1)
        lattice[rows, roomiest] += np.minimum(-excess, room[rows, roomiest])


def _balance_columns(lattice: _Lattice, smallest: _Lattice, largest: _Lattice) -> bool:
    for column, excess in enumerate(lattice.sum(axis=0).tolist()):
        entries = lattice[:, column]
        room = entries - smallest[:, column] if excess > 0 else largest[:, column] - entries
        shares = _shares(room, abs(excess))
        if shares is None:
            return False
        entries -= shares if excess > 0 else -shares
    return True


def _balance_columns_keeping_rows(lattice: _Lattice, largest: _Lattice) -> bool:
    """Move units from columns that sum to more than zero to those that sum to less, within rows."""
    excess = lattice.sum(axis=0).tolist()
    if sum(excess):
        return False
    givers = [column for column, amount in enumerate(excess) if amount > 0]
    for taker, needed in enumerate(excess):
        while needed < 0:
            giver = givers[-1]
            amount = min(-needed, excess[giver])
            shares = _shares(largest[:, taker] - lattice[:, taker], amount)
            if shares is None:
                return False
            lattice[:, taker] += shares
            lattice[:, giver] -= shares
            needed += amount
            excess[giver] -= amount
            if not excess[giver]:
                givers.pop()
    return True


def _shares(room: _Lattice, amount: int) -> _Lattice | None:
    """``amount`` as a sum of entries that are at most ``room``, most room first; ``None`` if there is too little."""
    shares = np.zeros_like(room)
    roomiest = int(room.argmax())
    if room[roomiest] >= amount:
        shares[roomiest] = amount
        return shares
    order = np.argsort(-room)
    capped = np.minimum(room[order], amount)
    taken_before = np.cumsum(capped) - capped
    shares[order] = np.clip(amount - taken_before, 0, capped)
    return shares if int(shares.sum()) == amount else None
