"""Quadratic majorants of one-sided sphere problems, and their maxima over the sphere, proven in floating point."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._verified_psd import gamma, semidefinite_shift
from torch_strongdual.certification.oracles.row_space import UNIT_ROUNDOFF
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem

__all__ = ["QuadraticMajorant", "secular_root", "secular_roots"]

FloatArray = NDArray[np.float64]

_NEWTON_STEPS = 30  # to the last digits mostly in five


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuadraticMajorant:
    r"""A quadratic :math:`q(u) = k + (G + X'c)'u + \sum_i a_i (x_i'u)^2 \ge w(u)` on the unit sphere.

    With :math:`x = x_i'u`, so :math:`|x| \le R_i = \|x_i\|`:

    - :math:`\lambda_i > 0`: :math:`(x)_+ = x/2 + |x|/2 \le x/2 + \tau/4 + x^2/(4\tau)` for every :math:`\tau > 0`. With
      :math:`a_i = \lambda_i/(4\tau)` this is :math:`\lambda_i (x)_+ \le \lambda_i x/2 + \lambda_i^2/(16 a_i) + a_i x^2`.
    - :math:`\lambda_i < 0`, :math:`t \in [0, 1]`, :math:`0 \le g \le \min(t, 1-t)/R_i`: :math:`(x)_+ \ge t x + g x^2`, because
      for x > 0 the difference is :math:`x ((1-t) - g x) \ge 0` and for x < 0 it is :math:`|x| (t - g|x|) \ge 0`. Here
      :math:`c_i = \lambda_i t` and :math:`a_i = \lambda_i g`.

    ``slopes`` (c) and ``curvatures`` (a) are taken as exact numbers, which define :math:`\tau`, t and g: rounding in their
    making costs nothing as long as these lie in their ranges, which :meth:`of` sees to.

    Args:
        problem: One-sided, with one output.
        slopes: ``c`` (n,).
        curvatures: ``a`` (n,), of the signs of the duals, and zero only where the dual is not positive.
    """

    problem: SphereProblem
    slopes: FloatArray
    curvatures: FloatArray

    @classmethod
    def of(cls, problem: SphereProblem, inverse_taus: FloatArray, shares: FloatArray) -> QuadraticMajorant:
        """Build it from ``1 / tau_i``, in units of ``1 / R_i`` (used where the dual is positive), and ``t_i`` (elsewhere)."""
        duals = problem.duals[:, 0]
        norms = np.linalg.norm(problem.rows, axis=1) * (1.0 + gamma(problem.rank + 4))  # upper bounds on R_i
        safe = np.where(norms > 0, norms, 1.0)
        shares = np.clip(shares, 0.0, 1.0)
        # t = fl(lambda t)/lambda may differ from `shares` by one rounding: stay clear of it on both sides.
        bends = np.maximum(np.minimum(shares, 1.0 - shares) - 8 * UNIT_ROUNDOFF, 0.0) * (1.0 - 16 * UNIT_ROUNDOFF)
        positive = duals > 0
        floor = np.finfo(np.float64).tiny ** 0.5
        upward = np.maximum(0.25 * duals * np.maximum(inverse_taus, floor) / safe, floor)
        return cls(
            problem=problem,
            slopes=np.where(positive, 0.5 * duals, duals * shares),
            curvatures=np.where(positive, upward, duals * (bends / safe)),
        )

    def proven_maximum(self) -> float:
        r"""Upper bound on :math:`\max_{\|u\| \le 1} w(u)`: never negative, ``inf`` when nothing could be proven.

        w is positively homogeneous, so its maximum over the ball is 0 or attained on the sphere. There, for any s and v with
        :math:`K = [[v, -b'/2], [-b/2, sI - A]] \succeq -\delta I`, the vector (1, u) gives
        :math:`v - b'u + s - u'Au \ge -2\delta`, that is :math:`q(u) \le k + s + v + 2\delta`. K is made of the *computed*
        A and b; :math:`\|u\| = 1` turns their errors into the norms added at the end. The best s solves the secular equation
        of the trust-region problem, and :math:`v = b'(sI - A)^{-1}b/4`; neither needs to be accurate.
        """
        rows, duals, linear = self.problem.rows, self.problem.duals[:, 0], self.problem.linear[:, 0]
        num_rows, rank = rows.shape
        if rank == 0:
            return 0.0
        positive = duals > 0
        constant = float(np.sum(duals[positive] ** 2 / (16.0 * self.curvatures[positive])))
        slope = linear + rows.T @ self.slopes
        curvature = rows.T @ (self.curvatures[:, None] * rows)
        curvature = 0.5 * (curvature + curvature.T)
        if not (math.isfinite(constant) and np.isfinite(slope).all() and np.isfinite(curvature).all()):
            return math.inf
        level, offset = secular_root(curvature, slope)
        joint = np.zeros((rank + 1, rank + 1))
        joint[0, 0], joint[1:, 0], joint[0, 1:] = offset, -0.5 * slope, -0.5 * slope
        joint[1:, 1:] = -curvature
        joint[np.arange(1, rank + 1), np.arange(1, rank + 1)] += level
        shift = semidefinite_shift(joint)
        norms = np.linalg.norm(rows, axis=1)
        # |fl(X'c + G) - b| <= gamma (|X|'|c| + |G|), |fl(X'aX) - A| <= gamma |X|'|a||X| entry by entry; norms of the right-hand
        # sides are at most sum |c_i| R_i + |G| and sum |a_i| R_i^2. The last diagonal difference is rounded once, too.
        forming = float(np.abs(self.slopes) @ norms + np.linalg.norm(linear) + np.abs(self.curvatures) @ norms**2)
        forming += constant + abs(level) + abs(offset)
        upper = constant + level + offset + 2.0 * shift + gamma(num_rows + rank + 8) * forming
        return max(0.0, upper) if math.isfinite(upper) else math.inf


def secular_root(curvature: FloatArray, slope: FloatArray) -> tuple[float, float]:
    r"""Approximate minimiser s of :math:`s + b'(sI - A)^{-1}b/4` over :math:`s > \lambda_{max}(A)`, and the second term."""
    levels, offsets = secular_roots(curvature[None], slope[None])
    return float(levels[0]), float(offsets[0])


def secular_roots(curvatures: FloatArray, slopes: FloatArray) -> tuple[FloatArray, FloatArray]:
    r"""The same for many problems at once, each s above the largest eigenvalue.

    With :math:`f(s) = \sum_i b_i^2 / (4 (s - \lambda_i)^2)` the minimiser has f = 1. :math:`f^{-1/2}` is concave, and so
    Newton's method, begun where the largest single term of f is 1, approaches the root from below.

    Args:
        curvatures: A, symmetric, shape (m, r, r).
        slopes: b, shape (m, r).

    Returns:
        s and the second terms, shape (m,) each.
    """
    eigenvalues, vectors = np.linalg.eigh(curvatures)
    parts = np.abs(np.einsum("mij,mi->mj", vectors, slopes))
    scale = np.maximum(np.linalg.norm(parts, axis=1), np.abs(eigenvalues).max(axis=1))
    least = eigenvalues[:, -1] + 1e-14 * scale
    units = np.where(scale > 0.0, scale, 1.0)[:, None]
    squares, values = (0.5 * parts / units) ** 2, eigenvalues / units
    levels = np.maximum(least, (eigenvalues + 0.5 * parts).max(axis=1)) / units[:, 0]
    for _ in range(_NEWTON_STEPS):
        gaps = np.maximum(levels[:, None] - values, 1e-15)
        terms = squares / gaps**2
        sums = terms.sum(axis=1)
        falls = 2.0 * (terms / gaps).sum(axis=1)
        steps = np.where(falls > 0.0, 2.0 * (np.sqrt(sums) - 1.0) * sums / np.where(falls > 0.0, falls, 1.0), 0.0)
        levels = np.maximum(levels + steps, least / units[:, 0])
        if (np.abs(steps) <= 1e-14).all():
            break
    gaps = np.maximum(levels[:, None] - values, 1e-15)
    return levels * units[:, 0], (squares / gaps).sum(axis=1) * units[:, 0]
