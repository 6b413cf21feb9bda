"""What the compiled box searches share: placing a cell, settling its rows, a linear majorant over a box.

Imported only when used, since Numba is. Centres and widths are dyadic, hence exact.
"""

from __future__ import annotations

import math

import numpy as np

from torch_strongdual.certification.oracles._boxes._compiled_kernel import part

__all__ = [
    "ALL_PROVEN",
    "ARENA_FULL",
    "CELLS",
    "COUNTEREXAMPLE",
    "FACE",
    "LAST_FACE",
    "LEVEL",
    "NEXT_CELL",
    "OUT_OF_CELLS",
    "STALLED",
    "largest_over_box",
    "leave_proven",
    "next_cell",
    "place",
    "settle",
    "split_cell",
]

OUT_OF_CELLS = 0
ALL_PROVEN = 1
COUNTEREXAMPLE = 2
STALLED = 3
ARENA_FULL = 4
NEXT_CELL = 5  # within a search only

# Positions in the array of counters.
LEVEL, FACE, CELLS, LAST_FACE = 0, 1, 2, 3

_NONE, _ONE = np.uint64(0), np.uint64(1)


@part
def largest_over_box(const, slope, centre, width, bound, enough, work):  # type: ignore[no-untyped-def]
    """Bound the maximum over the box of ``const + slope'(p - centre) - bound * ||p||`` from above.

    For any unit vector e, ``||p|| >= e'p``, and what remains is linear. The maximand is concave; e follows projected
    gradient steps towards its maximiser, until the bound is ``enough``. ``work`` receives the last point.
    """
    r = centre.shape[0]
    norm = 0.0
    for k in range(r):
        work[k] = centre[k]
        norm += centre[k] * centre[k]
    norm = np.sqrt(norm)
    best = np.inf
    for _ in range(4):
        along = 0.0
        reach = 0.0
        for k in range(r):
            e = work[k] / norm
            along += e * centre[k]
            reach += abs(slope[k] - bound * e) * width[k]
        best = min(best, const - bound * along + reach)
        if best <= enough:
            break
        # The gradient slope - bound * p / |p| has Lipschitz constant bound / min |p| <= bound on a face of the cube.
        step = norm / bound
        squared = 0.0
        for k in range(r):
            moved = work[k] + step * (slope[k] - bound * work[k] / norm)
            moved = min(max(moved, centre[k] - width[k]), centre[k] + width[k])
            work[k] = moved
            squared += moved * moved
        norm = np.sqrt(squared)
    return best


@part
def place(level, side, face, split, first, offset, count, centre, width):  # type: ignore[no-untyped-def]
    """Set centre and widths of the cell to be examined at ``level``; return the coordinate split and the signed step."""
    r = centre.shape[1]
    if level == 0:
        axis = face // 2
        for k in range(r):
            centre[0, k] = 0.0
            width[0, k] = 1.0
        centre[0, axis] = 1.0 if face % 2 == 0 else -1.0
        width[0, axis] = 0.0
        offset[0] = 0
        return axis, centre[0, axis]
    k = split[level - 1]
    half = 0.5 * width[level - 1, k]
    for j in range(r):
        centre[level, j] = centre[level - 1, j]
        width[level, j] = width[level - 1, j]
    step = first[level - 1] * half if side == 0 else -first[level - 1] * half
    centre[level, k] += step
    width[level, k] = half
    offset[level] = offset[level - 1] + count[level - 1]
    return k, step


@part
def settle(level, k, step, columns, index, middle, reach, offset, count, over):  # type: ignore[no-untyped-def]
    """Move the parent's undecided rows into the cell: values at the centre and half ranges; drop those decided in it.

    Sets ``count[level]``, the number of rows that stay undecided, written behind ``offset[level]`` in their old order, and
    returns how many rows became positive: their numbers are in ``over``.
    """
    r, n = columns.shape
    base = offset[level]
    column = columns[k]
    half = abs(step)
    if level == 0:
        start = base
        size = n
        for i in range(n):
            index[i] = i
            middle[i] = step * column[i]
            reach[i] = 0.0
        for j in range(r):
            if j != k:
                for i in range(n):
                    reach[i] += abs(columns[j, i])
        step = 0.0
        half = 0.0
    else:
        start = offset[level - 1]
        size = count[level - 1]
    # Numbers without a sign, since every index with one is first checked for being counted from the end.
    kept = _NONE
    ahead = _NONE
    rows = index[start : start + size]
    values = middle[start : start + size]
    ranges = reach[start : start + size]
    kept_rows, kept_values, kept_ranges = index[base:], middle[base:], reach[base:]
    for j in range(size):
        # Every row is written, but the next one takes its place if it is decided: there is nothing to mispredict.
        i = rows[j]
        x = column[i]
        t = values[j] + step * x
        rho = ranges[j] - half * abs(x)
        kept_rows[kept] = i
        kept_values[kept] = t
        kept_ranges[kept] = rho
        over[ahead] = i
        is_over = t >= rho
        ahead += _ONE if is_over else _NONE
        kept += _ONE if (not is_over) & (t > -rho) else _NONE
    count[level] = kept
    return ahead


@part
def next_cell(  # type: ignore[no-untyped-def]
    columns, counters, split, first, stage, count, offset, centre, width, index, middle, reach, over, witness
):
    """Leave cells whose halves are both done and settle the rows of the next one, a level below that of ``counters``.

    Returns ``NEXT_CELL``, or why there is none, then what :func:`place` and :func:`settle` return.
    """
    level = counters[LEVEL]
    while level >= 0 and stage[level] == 2:
        level -= 1
        counters[LEVEL] = level
        if level < 0:
            counters[FACE] += 1
    if level < 0 and counters[FACE] == counters[LAST_FACE]:
        return ALL_PROVEN, 0, 0.0, 0
    new = level + 1
    if new >= split.shape[0]:
        for k in range(columns.shape[0]):
            witness[k] = centre[level, k]
        return STALLED, 0, 0.0, 0
    side = stage[level] if level >= 0 else 0
    axis, step = place(new, side, counters[FACE], split, first, offset, count, centre, width)
    need = columns.shape[1] if new == 0 else count[level]
    if offset[new] + need > index.shape[0]:
        return ARENA_FULL, 0, 0.0, 0
    ahead = settle(new, axis, step, columns, index, middle, reach, offset, count, over)
    counters[CELLS] += 1
    return NEXT_CELL, axis, step, ahead


@part
def leave_proven(counters, stage, volume):  # type: ignore[no-untyped-def]
    """Go on beside the cell below the current level, which is proven."""
    level = counters[LEVEL]
    volume[0] += math.ldexp(1.0, -(level + 1))
    if level < 0:
        counters[FACE] += 1
    else:
        stage[level] += 1


@part
def split_cell(point, counters, split, first, stage, centre):  # type: ignore[no-untyped-def]
    """Go on within the cell below the current level, along its ``split``, first in the half that has ``point``."""
    level = counters[LEVEL]
    new = level + 1
    k = split[new]
    first[new] = 1.0 if point[k] >= centre[new, k] else -1.0
    stage[new] = 0
    if level >= 0:
        stage[level] += 1
    counters[LEVEL] = new
