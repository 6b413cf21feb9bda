"""The doubly nonnegative relaxation of a one-sided sphere problem, as a semidefinite program. CVXPY only."""

from __future__ import annotations

import warnings

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def doubly_nonnegative_value(rows: FloatArray, duals: FloatArray, linear: FloatArray) -> float:
    """Maximum of ``linear'E[u] + duals'E[z]`` over moments of (1, u, z) with ``s = z - rows u``, u on the unit sphere."""
    number, rank = rows.shape
    reduced = cp.Variable((1 + rank + number, 1 + rank + number), PSD=True)
    expansion = np.eye(1 + rank + 2 * number, 1 + rank + number)
    expansion[1 + rank + number :, 1 : 1 + rank] = -rows
    expansion[1 + rank + number :, 1 + rank :] = np.eye(number)
    moments = expansion @ reduced @ expansion.T
    first = 1 + rank
    constraints = [
        reduced[0, 0] == 1.0,
        cp.trace(reduced[1:first, 1:first]) == 1.0,
        moments[first:, first:] >= 0.0,
        cp.diag(moments[first : first + number, first + number :]) == 0.0,
        *(cp.norm(moments[1:first, j]) <= moments[0, j] for j in range(first, first + 2 * number)),
    ]
    objective = linear @ reduced[0, 1:first] + duals @ reduced[0, first:]
    problem = cp.Problem(cp.Maximize(objective), constraints)
    with warnings.catch_warnings():  # the best multipliers are not attained, and Clarabel then calls 1e-7 inaccurate
        warnings.simplefilter("ignore", UserWarning)
        problem.solve(solver=cp.CLARABEL)
    return float(problem.value)
