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


class _OutputMoments:
    """Moments of (u, v, z, s), v for the output weights: tr Y_uu + tr Y_vv is twice the size."""

    def __init__(self, rows: FloatArray, num_outputs: int) -> None:
        number, rank = rows.shape
        reduced = cp.Variable((rank + num_outputs + number, rank + num_outputs + number), PSD=True)
        expansion = np.zeros((2 * number, rank + num_outputs + number))
        expansion[number:, :rank] = -rows
        expansion[:number, rank + num_outputs :] = expansion[number:, rank + num_outputs :] = np.eye(number)
        products = expansion @ reduced @ expansion.T
        self.size = 0.5 * cp.trace(reduced[: rank + num_outputs, : rank + num_outputs])
        self.outputs = reduced[rank + num_outputs :, rank : rank + num_outputs]
        self.constraints = [products >= 0.0, cp.diag(products[:number, number:]) == 0.0]


def doubly_nonnegative_norm(rows: FloatArray, duals: FloatArray) -> float:
    """Maximum of ``<duals, E[z v']>`` over moments of inputs and outputs on their spheres."""
    moments = _OutputMoments(rows, duals.shape[1])
    return _solved(cp.Maximize(cp.sum(cp.multiply(duals, moments.outputs))), [moments.size == 1.0, *moments.constraints])


def relaxed_outputs_value(
    rows: FloatArray, targets: FloatArray, path_decay: float, *, is_softmax: bool = False, has_bias: bool = False
) -> float:
    """Minimum of ``|F - y|^2 / 2``, or of the cross-entropy, ``+ path_decay * size``: the best dual bound these prove."""
    moments = _OutputMoments(rows, targets.shape[1])
    outputs = moments.outputs
    if has_bias:
        outputs = outputs + np.ones((len(rows), 1)) @ cp.Variable((1, targets.shape[1]))
    if is_softmax:
        loss = cp.sum(cp.log_sum_exp(outputs, axis=1)) - cp.sum(cp.multiply(targets, outputs))
    else:
        loss = 0.5 * cp.sum_squares(outputs - targets)
    return _solved(cp.Minimize(loss + path_decay * moments.size), moments.constraints)
