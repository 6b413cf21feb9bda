"""Compiled depth-first search over boxes for vector problems.

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
from torch_strongdual.certification.oracles._boxes._rows_kernel import fill_lanes_by_sign, gather_points

__all__ = ["advance_vector"]


@part
def _rest_radius(parts, gram, weight, use_gram):  # type: ignore[no-untyped-def]
    """Bound ``||sum_i eps_i g_i||`` over ``|eps_i| <= b_i`` from above.

    ``parts[j] = sum_i b_i |g_ij|`` bounds it component by component; with ``gram = sum_i b_i g_i g_i' / |g_i|`` and
    ``weight = sum_i b_i |g_i|``, Cauchy-Schwarz gives ``sqrt(lmax(gram) * weight)``, and lmax is at most the square root of
    the Frobenius norm of the squared matrix.
    """
    c = parts.shape[0]
    squared = 0.0
    for j in range(c):
        squared += parts[j] * parts[j]
    if use_gram:
        frobenius = 0.0
        for i in range(c):
            for j in range(c):
                entry = 0.0
                for m in range(c):
                    entry += gram[i, m] * gram[m, j]
                frobenius += entry * entry
        squared = min(squared, frobenius**0.25 * weight if frobenius > 0.0 else 0.0)
    return np.sqrt(squared)


@kernel
def advance_vector(  # type: ignore[no-untyped-def]
    columns, points, singles, duals, linear, bound, slack, max_cells, counters, split, first, stage, count, offset,
    centre, width, form, index, middle, reach, volume, witness, mean, cov, weights, scratch, more,
):  # fmt: skip
    """Search for vector problems: ``||w(p)|| <= bound * ||p||`` with ``w(p) = linear'p + sum_i duals_i (x_i'p)_+``.

    Split w along its direction v at the centre: ``s = v'w`` and the rest q. If ``0 < M <= N + s`` and ``s + q^2 / M <= N`` on
    the cell, N = bound * ||p||, then ``q^2 <= (N + s)(N - s)``, that is ||w|| <= N. It is enough that M bounds N + s where
    ||w|| > N would hold: there ``s^2 > N^2 - q^2``.
    """
    r, n = columns.shape
    c = duals.shape[1]
    use_gram = c >= 4
    work, plain, top, gradient, hessian, small, lines, constants, lams, over, _, near_single, single, vectors = scratch
    low, spread, image, ahead, rest, rest_slope, parts, gram, sides, heights, near, reals, places = more
    for s in range(n):
        heights[s] = 0.0
        for m in range(c):
            heights[s] += duals[s, m] * duals[s, m]
        heights[s] = np.sqrt(heights[s])
    for _ in range(max_cells):
        outcome, axis, step, ahead_rows = next_cell(
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
        for m in range(c):
            image[m] = 0.0
            for k in range(r):
                form[new, k, m] = form[level, k, m] if level >= 0 else linear[k, m]
        for j in range(ahead_rows):
            for k in range(r):
                x = columns[k, over[j]]
                for m in range(c):
                    form[new, k, m] += x * duals[over[j], m]
        for m in range(c):
            side = sides[m]
            for s in range(kept):
                side[s] = duals[rows[s], m]
            total = 0.0
            for s in range(kept):
                total += max(mid[s], 0.0) * side[s]
            image[m] += total
        norm = 0.0
        for k in range(r):
            norm += centre[new, k] * centre[new, k]
            for m in range(c):
                image[m] += centre[new, k] * form[new, k, m]
        norm = np.sqrt(norm)
        length = 0.0
        for m in range(c):
            length += image[m] * image[m]
        length = np.sqrt(length)
        if length > bound * norm:
            for k in range(r):
                witness[k] = centre[new, k]
            return COUNTEREXAMPLE
        for m in range(c):
            ahead[m] = image[m] / length if length > 1e-300 else (1.0 if m == 0 else 0.0)
        for s in range(kept):
            lams[s] = 0.0
        for m in range(c):
            side = sides[m]
            share = ahead[m]
            for s in range(kept):
                lams[s] += share * side[s]
        gather_points(points, rows, near, 0)
        # s and the rest, decided rows first; constants are values at the centre.
        top_const = 0.0
        for m in range(c):
            rest[m] = 0.0
        for k in range(r):
            along = 0.0
            for m in range(c):
                along += form[new, k, m] * ahead[m]
            for m in range(c):
                rest_slope[k, m] = form[new, k, m] - along * ahead[m]
                rest[m] += centre[new, k] * rest_slope[k, m]
            top[k] = along
            low[k] = along
            plain[k] = along
            top_const += along * centre[new, k]
        low_const = top_const
        plain_const = top_const
        up = reals[0, :kept]
        down = reals[1, :kept]
        chord = reals[2, :kept]
        half_gap = reals[3, :kept]
        perp = reals[4, :kept]
        at_centre = reals[5, :kept]
        for s in range(kept):
            t = mid[s]
            rho = half[s]
            along = lams[s]
            slope = (t + rho) / (2.0 * rho)
            gap = (rho - t) * (rho + t) / (4.0 * rho)
            tangent = min(max(0.5 + t / (1.2 * rho), 0.0), 1.0)
            chord[s] = slope
            half_gap[s] = gap
            at_centre[s] = slope * t + gap
            up[s] = along * (slope if along > 0.0 else tangent)
            down[s] = along * (tangent if along > 0.0 else slope)
            top_const += up[s] * (rho if along > 0.0 else t)
            low_const += down[s] * (t if along > 0.0 else rho)
            perp[s] = 0.0
        for m in range(c):
            side = sides[m]
            for s in range(kept):
                side[s] -= lams[s] * ahead[m]
            total = 0.0
            part = 0.0
            for s in range(kept):
                total += side[s] * at_centre[s]
                part += abs(side[s]) * half_gap[s]
                perp[s] += side[s] * side[s]
            rest[m] += total
            parts[m] = part
        weight = 0.0
        for s in range(kept):
            length = np.sqrt(perp[s])
            weight += length * half_gap[s]
            half_gap[s] = half_gap[s] / length if length > 0.0 else 0.0
        scaled = reals[5, :kept]
        if use_gram:
            for m in range(c):
                side = sides[m]
                for s in range(kept):
                    scaled[s] = half_gap[s] * side[s]
                for k in range(m + 1):
                    other = sides[k]
                    total = 0.0
                    for s in range(kept):
                        total += scaled[s] * other[s]
                    gram[m, k] = total
                    gram[k, m] = total
        for k in range(r):
            column = near[k]
            upper = 0.0
            lower = 0.0
            for s in range(kept):
                upper += up[s] * column[s]
                lower += down[s] * column[s]
                scaled[s] = chord[s] * column[s]
            top[k] += upper
            low[k] += lower
            for m in range(c):
                side = sides[m]
                total = 0.0
                for s in range(kept):
                    total += scaled[s] * side[s]
                rest_slope[k, m] += total
        farthest = 0.0
        for m in range(c):
            entry = abs(rest[m])
            for k in range(r):
                entry += abs(rest_slope[k, m]) * width[new, k]
            farthest += entry * entry
        radius = _rest_radius(parts, gram, weight, use_gram) + slack
        straight = np.sqrt(farthest)
        farthest = straight + radius
        nearest = 0.0
        least = low_const
        floor = low_const + bound * norm
        for k in range(r):
            closest = max(abs(centre[new, k]) - width[new, k], 0.0)
            nearest += closest * closest
            least -= abs(low[k]) * width[new, k]
            floor -= abs(low[k] + bound * centre[new, k] / norm) * width[new, k]
        nearest = bound * np.sqrt(nearest)
        floor = max(floor, nearest + least)
        if farthest < nearest:
            room = np.sqrt(nearest * nearest - farthest * farthest)
            if least - slack >= -room:
                floor = max(floor, nearest + room)
        floor = (floor - slack) * (1.0 - 1e-15)
        proven = False
        for k in range(r):
            work[k] = centre[new, k]
        if floor > 0.02 * bound:
            const = top_const + farthest * farthest / floor * (1.0 + 1e-15)
            proven = largest_over_box(const, top, centre[new], width[new], bound, -slack, work) <= -slack
        inherit_law(new, axis, step, counters[FACE] // 2, mean, cov, weights)
        curved = not proven and floor > 0.02 * bound and r >= CURVED_RANK and kept > 0
        if curved:
            # q^2 <= (1 + eta) |affine part|^2 + (1 + 1 / eta) radius^2, divided by the floor, joins the quadratic in p.
            eta = radius / max(straight, 1e-3 * radius + 1e-300)
            scale = (1.0 + eta) / floor * (1.0 + 1e-14)
            const = plain_const + (1.0 + 1.0 / max(eta, 1e-300)) * radius * radius / floor * (1.0 + 1e-14)
            for m in range(c):
                const += scale * rest[m] * rest[m]
            for k in range(r):
                h = width[new, k]
                gradient[k] = 0.0
                for m in range(c):
                    gradient[k] += 2.0 * scale * rest_slope[k, m] * rest[m] * h
                for j in range(k + 1):
                    hessian[k, j] = 0.0
                    for m in range(c):
                        hessian[k, j] += 2.0 * scale * rest_slope[k, m] * rest_slope[j, m] * h * width[new, j]
            front, size = fill_lanes_by_sign(near, lams, mid, half, near_single, single, places)
            excess = quadratic_excess(
                near_single, single[0, :size], single[1, :size], single[2, :size], front, const, plain, centre[new], width[new],
                bound, slack, counters[FACE] // 2, mean[new], cov[new], weights[new],
                gradient, hessian, vectors, small, lines, constants,
            )  # fmt: skip
            proven = excess <= 0.0
        if proven:
            leave_proven(counters, stage, volume)
            continue
        for s in range(kept):
            lams[s] = heights[rows[s]]
        for k in range(r):
            spread[k] = 0.0
            for s in range(kept):
                spread[k] += lams[s] * abs(near[k, s])
            if curved:
                work[k] = centre[new, k] + width[new, k] * mean[new, k]
        best = -1.0
        for k in range(r):
            turn = 0.0
            for m in range(c):
                turn += rest_slope[k, m] * rest_slope[k, m]
            turn = np.sqrt(turn)
            gain = width[new, k] * (spread[k] + 0.5 * abs(top[k] - bound * centre[new, k] / norm) + turn)
            if width[new, k] > 0.0 and gain > best:
                best = gain
                split[new] = k
        split_cell(work, counters, split, first, stage, centre)
    return OUT_OF_CELLS
