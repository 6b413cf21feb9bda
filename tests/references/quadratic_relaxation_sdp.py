"""The best quadratic majorant of a one-sided sphere problem, from the dual side: a semidefinite program. CVXPY only."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def quadratic_relaxation_value(rows: FloatArray, duals: FloatArray, linear: FloatArray) -> float:
    """Maximum over moments ``(E u, E uu')`` of the unit sphere of the majorants' pointwise minima.

    Least ``tau/4 + E x^2/(4 tau)`` is ``sqrt(E x^2)/2``; the best of ``t E x + min(t, 1-t) E x^2 / R`` is at t = 0, 1/2 or 1.
    """
    rank = rows.shape[1]
    moments = cp.Variable((rank + 1, rank + 1), PSD=True)
    mean, second = moments[0, 1:], moments[1:, 1:]
    terms = [linear @ mean]
    for row, dual in zip(rows, duals, strict=True):
        square = cp.sum(cp.multiply(np.outer(row, row), second))
        if dual > 0:
            terms.append(dual * 0.5 * (row @ mean + cp.sqrt(square)))
        else:
            half = 0.5 * (row @ mean) + square / (2.0 * float(np.linalg.norm(row)))
            terms.append(dual * cp.maximum(0.0, row @ mean, half))
    problem = cp.Problem(cp.Maximize(cp.sum(cp.hstack(terms))), [moments[0, 0] == 1.0, cp.trace(second) == 1.0])
    problem.solve(solver=cp.CLARABEL)
    return max(0.0, float(problem.value))
