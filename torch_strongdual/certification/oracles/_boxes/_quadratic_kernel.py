"""Compiled quadratic bound of one box: rows that change sign in it get parabolas, chosen against the worst law of the point.

Over the box, ``w(p) - bound * ||p||`` is at most a quadratic for any choice of one valid parabola a row, and the quadratic is
at most what its best semidefinite certificate says. Choosing the parabolas is one side of a convex game. The other
side is a law of a random point in the box, known by its mean and covariance: the best parabola of a row is in closed form for
a law, and the worst law is a by-product of the certificate. Both sides are averaged over a few moves; children of a box
inherit its law. Every move is a valid bound, and what the best parabolas give for a law is what no choice can beat, so that
boxes beyond proof are recognised at once.
"""

from __future__ import annotations

import numpy as np

from torch_strongdual.certification.oracles._boxes._box_program_kernel import certified_value, cholesky, invert, make_definite
from torch_strongdual.certification.oracles._boxes._compiled_kernel import kernel
from torch_strongdual.certification.oracles._boxes._parabolas_kernel import answer_negative, answer_positive

__all__ = ["CURVED_RANK", "inherit_law", "quadratic_excess"]

CURVED_RANK = 4  # below it linear bounds and more cells are faster

_MOVES = 4  # of the game, at most
_SWEEPS = 3  # of the certificate's weights, each move
_RATE = 0.4  # at which the law is averaged
_DOUBT = 0.3  # go on only if the bound would be enough this far from the floor to the best bound yet


@kernel
def inherit_law(level, axis, step, face_axis, mean, cov, weights):  # type: ignore[no-untyped-def]
    """Carry mean and covariance of the point, in units of the box, and the weights from a box to its half."""
    r = mean.shape[1]
    if level == 0:
        for k in range(r):
            mean[0, k] = 0.0
            weights[0, k] = 0.0
            for j in range(r):
                cov[0, k, j] = 0.0
            cov[0, k, k] = 0.0 if k == face_axis else 1.0
        return
    for k in range(r):
        mean[level, k] = mean[level - 1, k]
        weights[level, k] = weights[level - 1, k]
        for j in range(r):
            cov[level, k, j] = cov[level - 1, k, j]
    weights[level, axis] *= 0.5
    # v' = 2 v - side in the half; kept within [-1, 1], and mean^2 + variance within 1
    side = 1.0 if step > 0.0 else -1.0
    ahead = min(max(2.0 * mean[level, axis] - side, -0.9), 0.9)
    mean[level, axis] = ahead
    spread = 4.0 * cov[level, axis, axis]
    room = 1.0 - ahead * ahead
    factor = 2.0
    if spread > room:
        factor = 2.0 * np.sqrt(room / spread)
    for k in range(r):
        cov[level, axis, k] *= factor
        cov[level, k, axis] *= factor


@kernel
def quadratic_excess(  # type: ignore[no-untyped-def]
    columns, lams, middle, reach, const, linear, centre, width, bound, slack, face_axis, mean, cov, weights,
    gradient, hessian, vectors, small, lines, constants,
):  # fmt: skip
    """Bound ``max w(p) - bound * ||p||`` over the box from above, rounding included; ``slack`` is that of the linear bound.

    Args of note: ``columns`` (rank, at least N), ``lams``, ``middle`` and ``reach`` (N,) are the undecided rows, those with a
    positive dual first; ``const + linear'(p - centre)`` are the decided rows; ``face_axis`` has no width. ``mean``, ``cov`` and
    ``weights`` (of one level) are the state of the game, in units of the box, updated. ``gradient`` and ``hessian`` (lower
    triangle) hold a quadratic in the same units that is added; on return they hold the whole, of the Hessian at least its
    diagonal. Positive infinity means that the box is beyond
    proof.
    """
    r = centre.shape[0]
    q = r - 1
    size = lams.shape[0]
    # Scratch, all in the coordinates that have a width.
    factor, inverse, hess, fixed_hess, new_hess, spread = small[0], small[1], small[2], small[3], small[4], small[5]
    grad, fixed_grad, new_grad, aim, point, load = lines[0], lines[1], lines[2], lines[3], lines[4], lines[5]
    means, variances, steep, half_inverse = vectors[0, :size], vectors[1, :size], vectors[2, :size], vectors[3, :size]
    weighted = vectors[4, :size]
    norm = 0.0
    radius = 0.0
    for k in range(r):
        norm += centre[k] * centre[k]
        radius += width[k] * width[k]
    norm = np.sqrt(norm)
    along = 0.0
    for k in range(r):
        along += abs(centre[k]) * width[k]
    farthest = norm + along / norm
    # ||p|| >= e'p + bend * d'(I - ee')d with d = p - centre, e = centre / norm
    bend = 0.0
    if radius > 0.0:
        bend = 1.0 / (np.sqrt(farthest * farthest + radius) + farthest)
    turn = 2.0 * bound * bend
    base = const - bound * norm
    magnitude = abs(const) + bound * (norm + farthest + radius * bend)
    for a in range(q):
        k = a if a < face_axis else a + 1
        e = centre[k] / norm
        magnitude += abs(linear[k]) * width[k] + abs(gradient[k])
        fixed_grad[a] = gradient[k] + (linear[k] - bound * e) * width[k]
        for b in range(a + 1):
            j = b if b < face_axis else b + 1
            magnitude += abs(hessian[k, j])
            fixed_hess[a, b] = hessian[k, j] + turn * width[k] * width[j] * e * centre[j] / norm
        fixed_hess[a, a] -= turn * width[k] * width[k]
        aim[a] = mean[k]
        load[a] = weights[k]
        for b in range(q):
            j = b if b < face_axis else b + 1
            spread[a, b] = cov[k, j]
    front = 0
    for s in range(size):
        front += 1 if lams[s] > 0.0 else 0
        steep[s] = 0.0
        half_inverse[s] = 0.5 / reach[s]
    const_rows = 0.0
    best = np.inf
    rounding = 0.0
    steepest = 0.0
    largest = magnitude
    floor = -np.inf
    for move in range(_MOVES):
        # What the best parabolas give for this law.
        for s in range(size):
            means[s] = 0.0
            variances[s] = 0.0
        for a in range(q):
            k = a if a < face_axis else a + 1
            column = columns[k]
            ahead = aim[a] * width[k]
            for s in range(size):
                means[s] += column[s] * ahead
                weighted[s] = 0.0
            for b in range(a):
                j = b if b < face_axis else b + 1
                other = columns[j]
                twice = 2.0 * spread[a, b] * width[k] * width[j]
                for s in range(size):
                    weighted[s] += twice * other[s]
            once = spread[a, a] * width[k] * width[k]
            for s in range(size):
                variances[s] += (weighted[s] + once * column[s]) * column[s]
        for s in range(size):
            variances[s] = max(variances[s], 0.0)
        constants[0] = 0.0
        constants[1] = 0.0
        constants[2] = 0.0
        answer_positive(
            middle[:front], reach[:front], half_inverse[:front], lams[:front], means[:front], variances[:front], steep[:front],
            constants,
        )  # fmt: skip
        answer_negative(
            middle[front:], reach[front:], half_inverse[front:], lams[front:], means[front:], variances[front:], steep[front:],
            constants,
        )  # fmt: skip
        worst = base + constants[1]
        for a in range(q):
            worst += fixed_grad[a] * aim[a]
            for b in range(a):
                worst += fixed_hess[a, b] * (spread[a, b] + aim[a] * aim[b])
            worst += 0.5 * fixed_hess[a, a] * (spread[a, a] + aim[a] * aim[a])
        floor = max(floor, worst)
        beyond = floor > 0.0 or (move > 0 and floor + _DOUBT * (best - floor) > 0.0)
        for a in range(q):
            k = a if a < face_axis else a + 1
            column = columns[k]
            total = 0.0
            curve = 0.0
            for s in range(size):
                total += means[s] * column[s]
                weighted[s] = variances[s] * column[s]
                curve += weighted[s] * column[s]
            new_grad[a] = total * width[k]
            new_hess[a, a] = curve * width[k] * width[k]
            if not beyond:
                for b in range(a):
                    j = b if b < face_axis else b + 1
                    other = columns[j]
                    total = 0.0
                    for s in range(size):
                        total += weighted[s] * other[s]
                    new_hess[a, b] = total * width[k] * width[j]
        share = 1.0 if move == 0 else 0.5
        const_rows += share * (constants[0] - const_rows)
        largest = max(largest, magnitude + constants[2])
        for a in range(q):
            grad[a] = fixed_grad[a] + new_grad[a] if move == 0 else grad[a] + share * (fixed_grad[a] + new_grad[a] - grad[a])
            for b in range(a + 1):
                entry = fixed_hess[a, b] + new_hess[a, b]
                if move > 0:
                    entry = hess[a, b] + share * (entry - hess[a, b])
                hess[a, b] = entry
                hess[b, a] = entry
        if beyond:
            best = np.inf
            break
        rounding = slack + 1.2e-16 * (8.0 * size + 40.0 * r + 160.0) * largest
        top = 0.0
        for a in range(q):
            total = abs(grad[a])
            for b in range(q):
                total += abs(hess[a, b])
            top = max(top, total)
        shift = 1e-14 * r * r * top + 1e-300
        if move == 0 and load[0] == 0.0:
            for a in range(q):
                total = abs(grad[a])
                for b in range(q):
                    total += abs(hess[a, b])
                load[a] = total
        for a in range(q):
            load[a] = max(load[a], 8.0 * shift)
        if not make_definite(hess, load, shift, factor):
            break
        barrier = 0.8 / (1.0 + 0.5 * move)
        for sweep in range(_SWEEPS + 1):
            invert(factor, inverse)
            heavy = 0.0
            for a in range(q):
                total = 0.0
                for b in range(a + 1):
                    total += inverse[a, b] * grad[b]
                aim_a = total
                new_grad[a] = aim_a
                heavy += load[a]
            for a in range(q):
                total = 0.0
                for b in range(a, q):
                    total += inverse[b, a] * new_grad[b]
                point[a] = total
            value = base + const_rows + certified_value(grad, hess, load, point) + rounding
            if value <= 0.0:
                # Errors of t and rho are enlarged by the slope of the parabolas; the sums have ``size`` terms.
                steepest = 0.0
                for s in range(size):
                    steepest = max(steepest, steep[s])
                value += 4.0 * slack * steepest
            best = min(best, value)
            if best <= 0.0 or sweep == _SWEEPS:
                break
            slackness = 0.5 * barrier * heavy / q
            for a in range(q):
                total = 0.0
                for b in range(a, q):
                    total += inverse[b, a] * inverse[b, a]
                moved = np.sqrt(point[a] * point[a] + slackness * total)
                new_grad[a] = load[a]
                load[a] = max(load[a] * min(max(moved, 0.3), 3.0), 8.0 * shift)
            tries = 0
            while not cholesky(hess, load, shift, factor) and tries < 6:
                tries += 1
                for a in range(q):
                    load[a] = 0.5 * (load[a] + new_grad[a])
            if tries == 6:
                for a in range(q):
                    load[a] = new_grad[a]
                cholesky(hess, load, shift, factor)
        # The law moves towards the one that is worst for these parabolas.
        slackness = 0.5 * barrier * heavy / q
        for a in range(q):
            for b in range(a + 1):
                total = 0.0
                for c in range(a, q):
                    total += inverse[c, a] * inverse[c, b]
                new_hess[a, b] = slackness * total
        for a in range(q):
            new_grad[a] = 1.0 / np.sqrt(max(new_hess[a, a] + point[a] * point[a], 1.0))
        for a in range(q):
            for b in range(a + 1):
                new_second = (new_hess[a, b] + point[a] * point[b]) * new_grad[a] * new_grad[b]
                second = spread[a, b] + aim[a] * aim[b]
                spread[a, b] = second + _RATE * (new_second - second)
        for a in range(q):
            aim[a] += _RATE * (point[a] * new_grad[a] - aim[a])
        for a in range(q):
            for b in range(a + 1):
                spread[a, b] -= aim[a] * aim[b]
                spread[b, a] = spread[a, b]
        if best <= 0.0:
            break
    for a in range(q):
        k = a if a < face_axis else a + 1
        mean[k] = aim[a]
        weights[k] = load[a]
        gradient[k] = grad[a]
        for b in range(q):
            j = b if b < face_axis else b + 1
            cov[k, j] = spread[a, b]
            hessian[k, j] = hess[a, b]
    return best
