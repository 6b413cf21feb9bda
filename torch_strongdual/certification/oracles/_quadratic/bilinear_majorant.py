"""A joint quadratic majorant for several outputs."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles._verified_psd import gamma, semidefinite_shift
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem

__all__ = ["bilinear_maximum"]

FloatArray = NDArray[np.float64]


def bilinear_maximum(problem: SphereProblem, *, deadline: Deadline) -> float:
    r"""Proven upper bound on :math:`\max \|w(u)\|` over the unit ball, for any number of outputs.

    For unit vectors u, v and with :math:`m_i = l_i'v`, :math:`x_i = x_i'u`: :math:`(x)_+ = x/2 + |x|/2` and
    :math:`m|x| \le (\tau m^2 + x^2/\tau)/2` for every :math:`\tau > 0`, so that

    .. math:: v'w(u) \le u'Nv + \tfrac14 \sum_i \tau_i (l_i'v)^2 + \tfrac14 \sum_i \frac{(x_i'u)^2}{\tau_i} = g'Q(\tau)g,
              \qquad N = G + \tfrac12 X'\Lambda, \quad g = (u, v), \quad \|g\|^2 = 2,

    and the maximum is at most :math:`2 \lambda_{max}(Q(\tau))`: scaling all :math:`\tau` trades the two blocks off, hence one
    level suffices. The smoothed eigenvalue is minimised over :math:`\log \tau`; the last step is proven by Cholesky.
    """
    rows, duals = problem.rows, problem.duals
    kept = (np.linalg.norm(rows, axis=1) > 0) & (np.linalg.norm(duals, axis=1) > 0)
    if not kept.all():
        problem = SphereProblem(rows=rows[kept], duals=duals[kept], linear=problem.linear)
    logarithms = np.log(np.linalg.norm(problem.rows, axis=1)) - np.log(np.linalg.norm(problem.duals, axis=1))
    best = _proven(problem, logarithms)
    if problem.num_rows and not deadline.expired:
        best = min(best, _proven(problem, _descend(problem, logarithms, deadline)))
    return best


def _matrix(problem: SphereProblem, logarithms: FloatArray) -> FloatArray:
    """``Q(tau)``."""
    tau = np.exp(logarithms)
    cross = 0.5 * problem.linear + 0.25 * (problem.rows.T @ problem.duals)
    first = 0.25 * (problem.rows.T @ (problem.rows / tau[:, None]))
    last = 0.25 * (problem.duals.T @ (problem.duals * tau[:, None]))
    return np.block([[first, cross], [cross.T, last]])


def _descend(problem: SphereProblem, logarithms: FloatArray, deadline: Deadline) -> FloatArray:
    """Minimise the smoothed largest eigenvalue by L-BFGS, sharpening it twice."""
    from scipy.optimize import minimize

    def objective(current: FloatArray, sharpness: float) -> tuple[float, FloatArray]:
        tau = np.exp(np.clip(current, -300.0, 300.0))
        eigenvalues, vectors = np.linalg.eigh(_matrix(problem, np.clip(current, -300.0, 300.0)))
        powers = np.exp(sharpness * (eigenvalues - eigenvalues[-1]))
        value = float(eigenvalues[-1]) + math.log(float(powers.sum())) / sharpness
        weighted = vectors * np.sqrt(powers / powers.sum())
        by_rows = np.sum((problem.rows @ weighted[: problem.rank]) ** 2, axis=1)
        by_duals = np.sum((problem.duals @ weighted[problem.rank :]) ** 2, axis=1)
        return value, 0.25 * (tau * by_duals - by_rows / tau)

    def stop_in_time(intermediate_result: object) -> None:
        if deadline.expired:
            raise StopIteration

    level = float(np.linalg.eigvalsh(_matrix(problem, logarithms))[-1])
    for sharpness in (30.0, 300.0, 3000.0):
        if deadline.expired or not level > 0.0 or not math.isfinite(level):
            break
        found = minimize(
            objective,
            logarithms,
            args=(sharpness / level,),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-300.0, 300.0)] * len(logarithms),
            options={"maxiter": 60},
            callback=stop_in_time,
        )
        logarithms = np.asarray(found.x, dtype=np.float64)
    return logarithms


def _proven(problem: SphereProblem, logarithms: FloatArray) -> float:
    """``2 lambda_max(Q(tau))``, rounding included.

    ``1/tau`` is rounded against ``tau``, too: that is one more relative error a term. All terms of Q are bounded by Frobenius
    norms as in :class:`QuadraticMajorant`.
    """
    if not np.isfinite(logarithms).all():
        return math.inf
    matrix = _matrix(problem, logarithms)
    if not np.isfinite(matrix).all():
        return math.inf
    level = float(np.linalg.eigvalsh(0.5 * (matrix + matrix.T))[-1])
    gap = -0.5 * (matrix + matrix.T)
    gap[np.diag_indices(len(gap))] += level
    shift = semidefinite_shift(gap)
    tau = np.exp(logarithms)
    row_norms, dual_norms = np.linalg.norm(problem.rows, axis=1), np.linalg.norm(problem.duals, axis=1)
    forming = 0.25 * float(np.sum(row_norms**2 / tau + dual_norms**2 * tau + 2.0 * row_norms * dual_norms))
    forming += float(np.linalg.norm(problem.linear)) + abs(level)
    return 2.0 * (level + shift + gamma(problem.num_rows + problem.rank + problem.num_outputs + 10) * forming)
