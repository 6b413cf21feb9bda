"""Compiled depth-first search over boxes for one-sided scalar problems.

It keeps its whole state in the arrays it is given, so that a search can be stopped after a number of cells and resumed, also
with a larger ``bound``: cells proven for a smaller one stay proven. ``slack`` bounds all rounding errors of one cell
(docs/rounding.md); a cell counts as proven only if its computed bound is below ``-slack``. The compiler may reassociate
sums: the slack holds for any order.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from torch_strongdual.certification.oracles._boxes._cells_kernel import (
    ALL_PROVEN,
    ARENA_FULL,
    CELLS,
    COUNTEREXAMPLE,
    FACE,
    FAST,
    LAST_FACE,
    LEVEL,
    OUT_OF_CELLS,
    STALLED,
    largest_over_box,
    place,
    settle,
)
from torch_strongdual.certification.oracles._boxes._quadratic_kernel import CURVED_RANK, inherit_law, quadratic_excess

__all__ = ["advance_scalar"]


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def advance_scalar(  # type: ignore[no-untyped-def]
    rows, duals, linear, bound, slack, max_cells, counters, split, first, stage, count, offset,
    centre, width, form, index, middle, reach, volume, witness, mean, cov, weights,
):  # fmt: skip
    """Search for one-sided scalar problems: ``w(p) = linear'p + sum_i duals_i (x_i'p)_+ <= bound * ||p||``."""
    r = rows.shape[1]
    depth = split.shape[0] - 1
    slope = np.zeros(r)
    total = np.zeros(r)
    work = np.zeros(r)
    spread = np.zeros(r)
    gradient = np.zeros(r)
    hessian = np.zeros((r, r))
    columns = np.zeros((r, rows.shape[0]))
    vectors = np.zeros((6, rows.shape[0]))
    small = np.zeros((7, max(r, 6), max(r, 6)))
    lams = np.zeros(rows.shape[0])
    level = counters[LEVEL]
    used = 0
    while used < max_cells:
        if level >= 0 and stage[level] == 2:
            level -= 1
            counters[LEVEL] = level
            if level < 0:
                counters[FACE] += 1
            continue
        if level < 0 and counters[FACE] == counters[LAST_FACE]:
            return ALL_PROVEN
        new = level + 1
        if new > depth:
            for k in range(r):
                witness[k] = centre[level, k]
            return STALLED
        side = stage[level] if level >= 0 else 0
        axis, step = place(new, side, counters[FACE], rows, split, first, offset, count, centre, width)
        need = rows.shape[0] if new == 0 else count[level]
        if offset[new] + need > index.shape[0]:
            return ARENA_FULL
        size = settle(new, axis, step, rows, index, middle, reach, offset, count)
        used += 1
        counters[CELLS] += 1
        # Linear majorant of the undecided rows, exact sum of the decided ones.
        for k in range(r):
            form[new, k, 0] = form[level, k, 0] if level >= 0 else linear[k, 0]
            slope[k] = 0.0
        base = offset[new]
        kept = 0
        const = 0.0
        value = 0.0
        for j in range(size):
            i = index[base + j]
            t = middle[base + j]
            rho = reach[base + j]
            lam = duals[i, 0]
            if t >= rho:
                for k in range(r):
                    form[new, k, 0] += lam * rows[i, k]
            elif t > -rho:
                index[base + kept] = i
                middle[base + kept] = t
                reach[base + kept] = rho
                kept += 1
                value += lam * max(t, 0.0)
                if lam > 0.0:
                    a = (t + rho) / (2.0 * rho)
                    const += lam * a * rho
                else:
                    a = min(max(0.5 + t / (1.2 * rho), 0.0), 1.0)
                    const += lam * a * t
                a *= lam
                for k in range(r):
                    slope[k] += a * rows[i, k]
        count[new] = kept
        norm = 0.0
        linear_part = 0.0
        for k in range(r):
            norm += centre[new, k] * centre[new, k]
            linear_part += form[new, k, 0] * centre[new, k]
            total[k] = slope[k] + form[new, k, 0]
        if value + linear_part > bound * np.sqrt(norm):
            for k in range(r):
                witness[k] = centre[new, k]
            return COUNTEREXAMPLE
        excess = largest_over_box(linear_part + const, total, centre[new], width[new], bound, -slack, work)
        proven = excess <= -slack
        inherit_law(new, axis, step, counters[FACE] // 2, mean, cov, weights)
        curved = not proven and r >= CURVED_RANK and kept > 0
        if curved:
            for k in range(r):
                slope[k] = form[new, k, 0]
                gradient[k] = 0.0
                for j in range(r):
                    hessian[k, j] = 0.0
            for j in range(kept):
                lams[j] = duals[index[base + j], 0]
            excess = quadratic_excess(
                rows, lams, index, middle, reach, base, kept, linear_part, slope, centre[new], width[new], bound, slack,
                counters[FACE] // 2, mean[new], cov[new], weights[new], gradient, hessian, columns, vectors, small,
            )  # fmt: skip
            proven = excess <= 0.0
        if proven:
            volume[0] += 0.5**new
            if level < 0:
                counters[FACE] += 1
            else:
                stage[level] += 1
            continue
        best = -1.0
        if curved:
            bend = 2.0 * bound / np.sqrt(norm)
            for k in range(r):
                work[k] = centre[new, k] + width[new, k] * mean[new, k]
                gain = max(hessian[k, k], 0.0) + bend * width[new, k] * width[new, k] + 0.5 * abs(gradient[k])
                if width[new, k] > 0.0 and gain > best:
                    best = gain
                    split[new] = k
        else:
            for k in range(r):
                spread[k] = 0.0
            for j in range(kept):
                i = index[base + j]
                lam = abs(duals[i, 0])
                for k in range(r):
                    spread[k] += lam * abs(rows[i, k])
            for k in range(r):
                gain = width[new, k] * (spread[k] + 0.5 * abs(total[k] - bound * centre[new, k] / np.sqrt(norm)))
                if width[new, k] > 0.0 and gain > best:
                    best = gain
                    split[new] = k
        k = split[new]
        first[new] = 1.0 if work[k] >= centre[new, k] else -1.0
        stage[new] = 0
        if level >= 0:
            stage[level] += 1
        level = new
        counters[LEVEL] = level
    return OUT_OF_CELLS
