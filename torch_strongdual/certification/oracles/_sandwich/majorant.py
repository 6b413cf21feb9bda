"""A polynomial of degree four above a one-sided sphere problem, and its maximum, proven in floating point."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._sandwich.gram import GramSpace
from torch_strongdual.certification.oracles._sandwich.problem import UnitRows
from torch_strongdual.certification.oracles._sandwich.quartics import Shapes, even_quartics
from torch_strongdual.certification.oracles._verified_psd import gamma, semidefinite_shift

__all__ = ["QuarticMajorant", "power_sums"]

FloatArray = NDArray[np.float64]

_CHUNK = 2**22  # entries of the matrix of products held at a time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuarticMajorant:
    r"""``p(u) = b'u + sum_i weights_i q_i(x_i'u)``, ``q_i`` the polynomial of ``shapes`` that bounds the absolute value.

    It lies above where the weight is positive and below where it is negative, so :math:`p \ge b'u + \sum_i \mu_i |x_i'u|`
    on the unit ball. The tilts go into b. With :math:`v(u) = (u, w)` as in :class:`GramSpace`, the rest
    :math:`q_{i0} + q_{i1} t^2 + q_{i2} t^4`,
    :math:`a = \sum \mu_i q_{i1} w(x_i)`, e the identity and *any* A, N and C, on the unit sphere

    .. math:: p(u) = k + v'Mv - w'Nw - 2u'Cw,\quad k = \sum_i \mu_i q_{i0},\quad
              M = \begin{pmatrix} A & \tfrac12 be' + C \\ \cdot &
              \sum_i \mu_i q_{i2} w(x_i)w(x_i)' + \tfrac12(\alpha e' + e\alpha') + N \end{pmatrix},
              \quad \alpha = a - \mathrm{flat}(A),

    because :math:`e'w = 1`, :math:`\mathrm{flat}(A)'w = u'Au` and :math:`w(x_i)'w = (x_i'u)^2`. As :math:`\|v\|^2 = 2`,
    p is at most :math:`k + 2\lambda_{max}(M)` plus what is left of :math:`w'Nw` and :math:`u'Cw`, which vanish but for
    rounding if N and C average to zero over equal monomials.

    Args:
        space: Of the Gram matrices.
        shapes: Of the polynomials, one for each row.
        shift: ``A``, symmetric (r, r).
        even: ``N`` (D, D).
        odd: ``C`` (r, D).
    """

    space: GramSpace
    shapes: Shapes
    shift: FloatArray
    even: FloatArray
    odd: FloatArray

    def proven_maximum(self, problem: UnitRows) -> float:
        r"""Upper bound on the maximum of ``problem`` over the unit ball: never negative, ``inf`` if nothing could be proven.

        The problem is positively homogeneous: the maximum is 0 or attained on the sphere. For a level s with
        :math:`sI - \hat M + \delta I \succeq 0`, proven by a Cholesky factorisation of the computed :math:`\hat M`,

        .. math:: p(u) \le k + 2 (s + \delta) + 2 \|M - \hat M\| + |w'Nw| + 2 |u'Cw| .

        *M.* Every :math:`\mu_i q_{ik}` has a relative error of at most 18 roundings, every entry of :math:`w(x_i)` of 3 (of
        :math:`w(x_i)w(x_i)'` of 7), and sums have at most n + 8 terms. So :math:`\|M - \hat M\|_2` is at most gamma of their
        total times the same expression in absolute values, where :math:`\|w(x_i)\| = \|x_i\|^2 \le 1` and
        :math:`\|e\| = \sqrt r`: :math:`\sum |\mu_i q_{i2}| + \sqrt r (\sum |\mu_i q_{i1}| + \|A\|_F + \|b\|) + \|N\|_F
        + \|C\|_F + s`. The errors of the quartics' values on the sphere and of k are of the same form: the coefficients are
        taken for those computed, and are off from true majorants by 18 roundings each. To b the tilts add
        :math:`\sum \mu_i \tau_i x_i`, off by gamma of :math:`\sum |\mu_i \tau_i|`.

        *N and C.* :math:`w'Nw = w'\bar N w` with :math:`\bar N` the average over equal monomials and :math:`\|w\| = 1`; the
        computed average is off by at most gamma of 14 times :math:`\|N\|_F`, since a class has at most six entries; likewise C.
        """
        space, rank = self.space, self.space.rank
        coefficients, _ = even_quartics(self.shapes.touches, problem.weights > 0)
        constants, squares, powers = coefficients * (problem.weights * self.shapes.shares)
        slopes = problem.weights * self.shapes.tilts
        linear = problem.linear + slopes @ problem.rows
        flat, even = power_sums(space, problem.rows, squares, powers)
        matrix = gram_matrix(space, flat - space.flat(self.shift), self.shift, even + self.even, linear, self.odd)
        constant = float(constants.sum())
        if not (np.isfinite(matrix).all() and math.isfinite(constant)):
            return math.inf
        level = float(np.linalg.eigvalsh(matrix)[-1])
        gap = -matrix
        gap[np.diag_indices(len(gap))] += level
        shift = semidefinite_shift(gap)
        left = float(np.linalg.norm(space.even_values(self.even))) + 2.0 * float(np.linalg.norm(space.odd_values(self.odd)))
        size = float(np.linalg.norm(self.even) + np.linalg.norm(self.odd) + np.abs(powers).sum()) + abs(level) + shift
        size += math.sqrt(rank) * float(np.abs(squares).sum() + np.linalg.norm(self.shift) + np.linalg.norm(problem.linear))
        size += math.sqrt(rank) * float(np.abs(slopes).sum())
        size += float(np.abs(constants).sum())
        rounding = 8.0 * gamma(len(problem.weights) + rank + 2 * space.num_products + 32) * size
        upper = constant + 2.0 * (level + shift) + left + rounding
        return max(0.0, upper) if math.isfinite(upper) else math.inf


def power_sums(
    space: GramSpace,
    rows: FloatArray,  # (n, r)
    squares: FloatArray,  # (n,)
    powers: FloatArray,  # (n,)
) -> tuple[FloatArray, FloatArray]:  # (D,), (D, D)
    """``sum_i squares_i w(x_i)`` and ``sum_i powers_i w(x_i) w(x_i)'``, in chunks of rows."""
    flat, even = np.zeros(space.num_products), np.zeros((space.num_products, space.num_products))
    step = max(1, _CHUNK // max(1, space.num_products))
    for start in range(0, len(rows), step):
        chunk = slice(start, start + step)
        products = space.products(rows[chunk])
        flat += squares[chunk] @ products
        even += (products * powers[chunk, None]).T @ products
    return flat, even


def gram_matrix(
    space: GramSpace,
    flat: FloatArray,  # (D,)
    shift: FloatArray,  # (r, r)
    even: FloatArray,  # (D, D)
    linear: FloatArray,  # (r,)
    odd: FloatArray,  # (r, D)
) -> FloatArray:  # (r + D, r + D)
    """``v'Mv = u'shift u + flat'w + w'even w + linear'u + 2 u'odd w`` on the sphere; exactly symmetric."""
    rank, unit = space.rank, space.identity
    matrix = np.empty((rank + len(flat), rank + len(flat)))
    matrix[:rank, :rank] = 0.5 * (shift + shift.T)
    matrix[:rank, rank:] = 0.5 * np.outer(linear, unit) + odd
    matrix[rank:, :rank] = matrix[:rank, rank:].T
    last = even + np.outer(flat, unit)
    matrix[rank:, rank:] = 0.5 * (last + last.T)
    return matrix
