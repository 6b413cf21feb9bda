"""The doubly nonnegative relaxation of a one-sided sphere problem, as a semidefinite program. CVXPY only."""

from __future__ import annotations

import warnings

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class _Moments:
    """Moments of (1, u, z, s), ``s = z - rows u``, of any size t: Y_11 = tr Y_uu = t."""

    def __init__(self, rows: FloatArray) -> None:
        number, rank = rows.shape
        first = 1 + rank
        reduced = cp.Variable((first + number, first + number), PSD=True)
        expansion = np.eye(first + 2 * number, first + number)
        expansion[first + number :, 1:first] = -rows
        expansion[first + number :, first:] = np.eye(number)
        moments = expansion @ reduced @ expansion.T
        self.size, self.linear = reduced[0, 0], reduced[0, 1:first]
        self.active, self.inactive = moments[0, first : first + number], moments[0, first + number :]
        self.constraints = [
            cp.trace(reduced[1:first, 1:first]) == self.size,
            moments[first:, first:] >= 0.0,
            cp.diag(moments[first : first + number, first + number :]) == 0.0,
            *(cp.norm(moments[1:first, j]) <= moments[0, j] for j in range(first, first + 2 * number)),
        ]


def _solved(objective: cp.Minimize | cp.Maximize, constraints: list[cp.Constraint]) -> float:
    problem = cp.Problem(objective, constraints)
    with warnings.catch_warnings():  # the best multipliers are not attained, and Clarabel then calls 1e-7 inaccurate
        warnings.simplefilter("ignore", UserWarning)
        problem.solve(solver=cp.CLARABEL)
    return float(problem.value)


def doubly_nonnegative_value(rows: FloatArray, duals: FloatArray, linear: FloatArray) -> float:
    """Maximum of ``linear'E[u] + duals'E[z]`` over moments with u on the unit sphere."""
    moments = _Moments(rows)
    objective = cp.Maximize(linear @ moments.linear + duals @ moments.active)
    return _solved(objective, [moments.size == 1.0, *moments.constraints])


def relaxed_training_value(
    rows: FloatArray, targets: FloatArray, path_decay: float, *, slope: float = 0.0, has_bias: bool = False
) -> float:
    """Minimum of ``|F - y|^2 / 2 + path_decay * size`` with moments for branches: the best dual bound these prove."""
    plus, minus = _Moments(rows), _Moments(rows)
    outputs = plus.active - slope * plus.inactive - minus.active + slope * minus.inactive
    if has_bias:
        outputs = outputs + cp.Variable()
    objective = 0.5 * cp.sum_squares(outputs - targets) + path_decay * (plus.size + minus.size)
    return _solved(cp.Minimize(objective), plus.constraints + minus.constraints)
