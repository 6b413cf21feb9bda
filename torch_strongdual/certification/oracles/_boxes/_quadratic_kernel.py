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
from torch_strongdual.certification.oracles._boxes._compiled_kernel import part, small_part
from torch_strongdual.certification.oracles._boxes._parabolas_kernel import answer_negative, answer_positive
from torch_strongdual.certification.oracles._boxes._rows_kernel import row_moments, row_sums

__all__ = ["CURVED_RANK", "inherit_law", "quadratic_excess"]

CURVED_RANK = 4  # below it linear bounds and more cells are faster

_MOVES = 4  # of the game, at most
_SWEEPS = 3  # of the certificate's weights, each move
_RATE = 0.4  # at which the law is averaged
_DOUBT = 0.3  # go on only if the bound would be enough this far from the floor to the best bound yet
_ZERO, _HALF = np.float32(0.0), np.float32(0.5)
_ONE = np.uint64(1)  # for indices: those with a sign are checked for being counted from the end


@part
def inherit_law(level, axis, step, face_axis, mean, cov, weights):  # type: ignore[no-untyped-def]
    """Carry mean and covariance of the point, in units of the box, and the weights from a box to its half."""
    r = mean.shape[1]
    if level == 0 or not abs(mean[level - 1, axis]) <= 1.0:  # not a number after an overflow of single precision
        for k in range(r):
            mean[level, k] = 0.0
            weights[level, k] = 0.0
            for j in range(r):
                cov[level, k, j] = 0.0
            cov[level, k, k] = 0.0 if k == face_axis else 1.0
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


@small_part
def _decided(const, linear, centre, width, bound, face_axis, gradient, hessian, fixed_grad, fixed_hess):  # type: ignore[no-untyped-def]
    """What does not depend on the undecided rows: gradient and Hessian (lower triangle), constant, and magnitude of it all.

    ``||p|| >= e'p + bend * d'(I - ee')d`` with ``d = p - centre`` and ``e = centre / norm``.
    """
    r = centre.shape[0]
    norm = 0.0
    radius = 0.0
    along = 0.0
    for k in range(r):
        norm += centre[k] * centre[k]
        radius += width[k] * width[k]
        along += abs(centre[k]) * width[k]
    norm = np.sqrt(norm)
    farthest = norm + along / norm
    bend = 0.0
    if radius > 0.0:
        bend = 1.0 / (np.sqrt(farthest * farthest + radius) + farthest)
    turn = 2.0 * bound * bend
    magnitude = abs(const) + bound * (norm + farthest + radius * bend)
    for a in range(r - 1):
        k = a if a < face_axis else a + 1
        e = centre[k] / norm
        magnitude += abs(linear[k]) * width[k] + abs(gradient[k])
        fixed_grad[a] = gradient[k] + (linear[k] - bound * e) * width[k]
        lever = turn * width[k] * e / norm
        for b in range(a + 1):
            j = b if b < face_axis else b + 1
            magnitude += abs(hessian[k, j])
            fixed_hess[a, b] = hessian[k, j] + lever * width[j] * centre[j]
        fixed_hess[a, a] -= turn * width[k] * width[k]
    return const - bound * norm, magnitude


@small_part
def _law_in(face_axis, mean, cov, weights, aim, spread, load):  # type: ignore[no-untyped-def]
    """The state of the game without the axis that has no width."""
    q = mean.shape[0] - 1
    for a in range(q):
        k = a if a < face_axis else a + 1
        aim[a] = mean[k]
        load[a] = weights[k]
        for b in range(a + 1):
            spread[a, b] = cov[k, b if b < face_axis else b + 1]


@small_part
def _law_out(face_axis, mean, cov, weights, aim, spread, load, gradient, hessian, grad, hess):  # type: ignore[no-untyped-def]
    """Hand the state of the game back, and the quadratic."""
    q = mean.shape[0] - 1
    for a in range(q):
        k = a if a < face_axis else a + 1
        mean[k] = aim[a]
        weights[k] = load[a]
        gradient[k] = grad[a]
        hessian[k, k] = hess[a, a]
        for b in range(a + 1):
            j = b if b < face_axis else b + 1
            cov[k, j] = spread[a, b]
            cov[j, k] = spread[a, b]


@small_part
def _under_law(grad, hess, aim, spread):  # type: ignore[no-untyped-def]
    """Expected value of the quadratic for a law."""
    value = 0.0
    for a in range(aim.shape[0]):
        x = aim[a]
        across = 0.0
        for b in range(a):
            across += hess[a, b] * (spread[a, b] + x * aim[b])
        value += across + grad[a] * x + 0.5 * hess[a, a] * (spread[a, a] + x * x)
    return value


@small_part
def _average(share, fixed_grad, fixed_hess, new_grad, new_hess, grad, hess):  # type: ignore[no-untyped-def]
    """Move the averaged quadratic by ``share`` towards the new one, of whose Hessian only the lower triangle is read."""
    q = np.uint64(grad.shape[0])
    for a in range(q):
        row, fixed, new = hess[a], fixed_hess[a], new_hess[a]
        grad[a] = fixed_grad[a] + new_grad[a] if share == 1.0 else grad[a] + share * (fixed_grad[a] + new_grad[a] - grad[a])
        for b in range(a + _ONE):
            entry = fixed[b] + new[b]
            if share != 1.0:
                entry = row[b] + share * (entry - row[b])
            row[b] = entry
            hess[b, a] = entry


@small_part
def _magnitudes(grad, hess, sums):  # type: ignore[no-untyped-def]
    """``|grad_a| + sum_b |hess_ab|`` into ``sums``, and the largest of them."""
    top = 0.0
    for a in range(grad.shape[0]):
        total = abs(grad[a])
        for b in range(grad.shape[0]):
            total += abs(hess[a, b])
        sums[a] = total
        top = max(top, total)
    return top


@small_part
def _solve(inverse, grad, line, point):  # type: ignore[no-untyped-def]
    """The maximiser of the certificate, by the transposed inverse of its Cholesky factor."""
    q = np.uint64(grad.shape[0])
    for a in range(q):
        total = 0.0
        for b in range(a + _ONE):
            total += inverse[b, a] * grad[b]
        line[a] = total
    for a in range(q):
        row = inverse[a]
        total = 0.0
        for b in range(a, q):
            total += row[b] * line[b]
        point[a] = total


@small_part
def _reweigh(hess, load, shift, slackness, point, inverse, factor, previous):  # type: ignore[no-untyped-def]
    """Weights that suit the point and the inverse better; half way back to the old ones while they are not definite."""
    q = np.uint64(point.shape[0])
    for a in range(q):
        row = inverse[a]
        total = 0.0
        for b in range(a, q):
            total += row[b] * row[b]
        moved = np.sqrt(point[a] * point[a] + slackness * total)
        previous[a] = load[a]
        load[a] = max(load[a] * min(max(moved, 0.3), 3.0), 8.0 * shift)
    tries = 0
    while not cholesky(hess, load, shift, factor) and tries < 6:
        tries += 1
        for a in range(q):
            load[a] = 0.5 * (load[a] + previous[a])
    if tries == 6:
        for a in range(q):
            load[a] = previous[a]
        cholesky(hess, load, shift, factor)


@small_part
def _move_law(slackness, inverse, point, scale, aim, spread):  # type: ignore[no-untyped-def]
    """Move the law towards the one that is worst for the averaged quadratic; of ``spread``, the lower triangle."""
    q = np.uint64(point.shape[0])
    for a in range(q):
        row = inverse[a]
        total = 0.0
        for c in range(a, q):
            total += row[c] * row[c]
        scale[a] = 1.0 / np.sqrt(max(slackness * total + point[a] * point[a], 1.0))
    for a in range(q):
        row = inverse[a]
        seconds = spread[a]
        for b in range(a + _ONE):
            other = inverse[b]
            total = 0.0
            for c in range(a, q):
                total += row[c] * other[c]
            new_second = (slackness * total + point[a] * point[b]) * scale[a] * scale[b]
            second = seconds[b] + aim[a] * aim[b]
            seconds[b] = second + _RATE * (new_second - second)
    for a in range(q):
        aim[a] += _RATE * (point[a] * scale[a] - aim[a])
    for a in range(q):
        seconds = spread[a]
        for b in range(a + _ONE):
            seconds[b] -= aim[a] * aim[b]


@part
def quadratic_excess(  # type: ignore[no-untyped-def]
    columns, lams, middle, reach, front, const, linear, centre, width, bound, slack, face_axis, mean, cov, weights,
    gradient, hessian, vectors, small, lines, constants,
):  # fmt: skip
    """Bound ``max w(p) - bound * ||p||`` over the box from above, rounding included; ``slack`` is that of the linear bound.

    Args of note: ``columns`` (rank, at least N), ``lams``, ``middle`` and ``reach`` (N,) are the undecided rows, ``front`` of
    them with a positive dual first, as ``fill_lanes`` leaves them; ``const + linear'(p - centre)`` are the decided rows;
    ``face_axis`` has no width. ``mean``, ``cov`` and ``weights`` (of one level) are the state of the game, in units of the box,
    updated. ``gradient`` and ``hessian`` (lower triangle) hold a quadratic in the same units that is added; on return they hold
    the whole, of the Hessian the diagonal. Positive infinity means that the box is beyond proof.
    """
    r = centre.shape[0]
    q = r - 1
    size = lams.shape[0]
    # Scratch, all in the coordinates that have a width.
    factor, inverse, hess, fixed_hess, new_hess, spread = small[0], small[1], small[2], small[3], small[4], small[5]
    grad, fixed_grad, new_grad, aim, point, load = lines[0], lines[1], lines[2], lines[3], lines[4], lines[5]
    means, variances, steep, half_inverse = vectors[0, :size], vectors[1, :size], vectors[2, :size], vectors[3, :size]
    weighted = vectors[4, :size]
    base, magnitude = _decided(const, linear, centre, width, bound, face_axis, gradient, hessian, fixed_grad, fixed_hess)
    _law_in(face_axis, mean, cov, weights, aim, spread, load)
    widest = _ZERO
    for s in range(size):
        steep[s] = _ZERO
        half_inverse[s] = _HALF / reach[s]
        widest += abs(lams[s]) * reach[s]
    const_rows = 0.0
    best = np.inf
    parabolas = 0.0
    floor = -np.inf
    for move in range(_MOVES):
        # What the best parabolas give for this law.
        row_moments(columns, face_axis, width, aim, spread, means, variances, weighted)
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
        floor = max(floor, base + constants[1] + _under_law(fixed_grad, fixed_hess, aim, spread))
        beyond = floor > 0.0 or (move > 0 and floor + _DOUBT * (best - floor) > 0.0)
        row_sums(columns, face_axis, width, means, variances, weighted, beyond, new_grad, new_hess)
        share = 1.0 if move == 0 else 0.5
        const_rows += share * (constants[0] - const_rows)
        parabolas = max(parabolas, constants[2])
        _average(share, fixed_grad, fixed_hess, new_grad, new_hess, grad, hess)
        if beyond:
            best = np.inf
            break
        rounding = slack + 1.2e-16 * (8.0 * size + 40.0 * r + 160.0) * (magnitude + parabolas)
        rounding += 6.0e-8 * (2.0 * size + 100.0) * (parabolas + widest)
        shift = 1e-14 * r * r * _magnitudes(grad, hess, new_grad) + 1e-300
        is_new = move == 0 and load[0] == 0.0
        for a in range(q):
            load[a] = max(new_grad[a] if is_new else load[a], 8.0 * shift)
        if not make_definite(hess, load, shift, factor):
            break
        barrier = 0.8 / (1.0 + 0.5 * move)
        slackness = 0.0
        for sweep in range(_SWEEPS + 1):
            invert(factor, inverse)
            _solve(inverse, grad, new_grad, point)
            value = base + const_rows + certified_value(grad, hess, load, point) + rounding
            if value <= 0.0:
                # Errors of t and rho are enlarged by the slope of the parabolas; the sums have ``size`` terms.
                steepest = _ZERO
                for s in range(size):
                    steepest = max(steepest, steep[s])
                value += 4.0 * slack * steepest
            best = min(best, value)
            heavy = 0.0
            for a in range(q):
                heavy += load[a]
            slackness = 0.5 * barrier * heavy / q
            if best <= 0.0 or sweep == _SWEEPS:
                break
            _reweigh(hess, load, shift, slackness, point, inverse, factor, new_grad)
        _move_law(slackness, inverse, point, new_grad, aim, spread)
        if best <= 0.0:
            break
    _law_out(face_axis, mean, cov, weights, aim, spread, load, gradient, hessian, grad, hess)
    return best
