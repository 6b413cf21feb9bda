"""Compiled depth-first search over boxes for one-sided scalar problems.

It keeps its whole state in the arrays it is given, so that a search can be stopped after a number of cells and resumed, also
with a larger ``bound``: cells proven for a smaller one stay proven. ``slack`` bounds all rounding errors of one cell
(docs/rounding.md); a cell counts as proven only if its computed bound is below ``-slack``. The compiler may reassociate
sums: the slack holds for any order.
"""

from __future__ import annotations

import numpy as np

from torch_strongdual.certification.oracles._boxes._cells_kernel import (
    COUNTEREXAMPLE,
    FACE,
    LEVEL,
    NEXT_CELL,
    OUT_OF_CELLS,
    largest_over_box,
    leave_proven,
    next_cell,
    split_cell,
)
from torch_strongdual.certification.oracles._boxes._compiled_kernel import kernel, part
from torch_strongdual.certification.oracles._boxes._quadratic_kernel import CURVED_RANK, inherit_law, quadratic_excess
from torch_strongdual.certification.oracles._boxes._rows_kernel import fill_lanes

__all__ = ["advance_scalar"]


@part
def _linear_majorant(columns, rows, lams, middle, reach, decided, slopes, total):  # type: ignore[no-untyped-def]
    """Chords above the undecided rows with a positive dual, lines below the others.

    ``total`` receives the slope of the majorant together with that of the ``decided`` rows; the constant is returned.
    """
    const = 0.0
    for s in range(rows.shape[0]):
        t = middle[s]
        rho = reach[s]
        lam = lams[s]
        if lam > 0.0:
            slope = (t + rho) / (2.0 * rho)
            const += lam * slope * rho
        else:
            slope = min(max(0.5 + t / (1.2 * rho), 0.0), 1.0)
            const += lam * slope * t
        slopes[s] = slope * lam
    for k in range(columns.shape[0]):
        value = decided[k]
        for s in range(rows.shape[0]):
            value += slopes[s] * columns[k, rows[s]]
        total[k] = value
    return const


@kernel
def advance_scalar(  # type: ignore[no-untyped-def]
    columns, singles, duals, linear, bound, slack, max_cells, counters, split, first, stage, count, offset,
    centre, width, form, index, middle, reach, volume, witness, mean, cov, weights, scratch,
):  # fmt: skip
    """Search for one-sided scalar problems: ``w(p) = linear'p + sum_i duals_i (x_i'p)_+ <= bound * ||p||``.

    ``columns`` are the rows transposed, (r, n), those with positive duals first; ``singles`` are the same rows, (n, r).
    """
    r = columns.shape[0]
    work, plain, total, gradient, hessian, small, lines, constants, lams, over, slopes, near, single, vectors = scratch
    for _ in range(max_cells):
        outcome, axis, step, ahead = next_cell(
            columns, counters, split, first, stage, count, offset, centre, width, index, middle, reach, over, witness
        )
        if outcome != NEXT_CELL:
            return outcome
        level = counters[LEVEL]
        new = level + 1
        base = offset[new]
        kept = count[new]
        rows = index[base : base + kept]
        mid = middle[base : base + kept]
        half = reach[base : base + kept]
        norm = 0.0
        value = 0.0
        for k in range(r):
            decided = 0.0
            for j in range(ahead):
                decided += duals[over[j]] * columns[k, over[j]]
            plain[k] = decided + (form[level, k, 0] if level >= 0 else linear[k, 0])
            form[new, k, 0] = plain[k]
            value += plain[k] * centre[new, k]
            norm += centre[new, k] * centre[new, k]
        norm = np.sqrt(norm)
        linear_part = value
        for s in range(kept):
            lams[s] = duals[rows[s]]
        for s in range(kept):
            value += lams[s] * max(mid[s], 0.0)
        if value > bound * norm:
            for k in range(r):
                witness[k] = centre[new, k]
            return COUNTEREXAMPLE
        inherit_law(new, axis, step, counters[FACE] // 2, mean, cov, weights)
        curved = r >= CURVED_RANK and kept > 0
        if curved:
            for k in range(r):
                gradient[k] = 0.0
                for j in range(r):
                    hessian[k, j] = 0.0
            positive = 0
            for s in range(kept):
                positive += 1 if lams[s] > 0.0 else 0
            front, size = fill_lanes(singles, rows, lams, mid, half, positive, near, single)
            excess = quadratic_excess(
                near, single[0, :size], single[1, :size], single[2, :size], front, linear_part, plain, centre[new], width[new],
                bound, slack, counters[FACE] // 2, mean[new], cov[new], weights[new],
                gradient, hessian, vectors, small, lines, constants,
            )  # fmt: skip
            proven = excess <= 0.0
        else:
            const = _linear_majorant(columns, rows, lams, mid, half, plain, slopes, total)
            proven = largest_over_box(linear_part + const, total, centre[new], width[new], bound, -slack, work) <= -slack
        if proven:
            leave_proven(counters, stage, volume)
            continue
        best = -1.0
        if curved:
            bend = 2.0 * bound / norm
            for k in range(r):
                work[k] = centre[new, k] + width[new, k] * mean[new, k]
                gain = max(hessian[k, k], 0.0) + bend * width[new, k] * width[new, k] + 0.5 * abs(gradient[k])
                if width[new, k] > 0.0 and not gain <= best:  # also if it is not a number
                    best = gain
                    split[new] = k
        else:
            for k in range(r):
                spread = 0.5 * abs(total[k] - bound * centre[new, k] / norm)
                for s in range(kept):
                    spread += abs(lams[s] * columns[k, rows[s]])
                gain = width[new, k] * spread
                if width[new, k] > 0.0 and gain > best:
                    best = gain
                    split[new] = k
        split_cell(work, counters, split, first, stage, centre)
    return OUT_OF_CELLS
