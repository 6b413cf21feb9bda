"""Global optima of path-regularised training by convex programs: all patterns, gates, nuclear norm. CVXPY and Clarabel."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray

from .enumeration import enumerate_patterns

FloatArray = NDArray[np.float64]

LOSSES = ("squared", "logistic", "huber", "absolute", "softmax")


@dataclass(frozen=True, kw_only=True, eq=False)
class ProgramOptimum:
    """Optimal value of the training problem, and the outputs of an optimal network."""

    value: float
    outputs: FloatArray  # (n, c)


def loss_expression(outputs: cp.Expression, targets: FloatArray, loss: str) -> cp.Expression:
    """Sums, not means: squared is half the squared distance, Huber has delta 1, logistic takes targets in [0, 1].

    Softmax takes one row of class probabilities a sample.
    """
    if loss == "squared":
        return 0.5 * cp.sum_squares(outputs - targets)
    if loss == "logistic":
        return cp.sum(cp.logistic(outputs)) - cp.sum(cp.multiply(targets, outputs))
    if loss == "huber":
        return 0.5 * cp.sum(cp.huber(outputs - targets, 1.0))
    if loss == "absolute":
        return cp.sum(cp.abs(outputs - targets))
    if loss == "softmax":
        mass = targets.sum(axis=1)
        return cp.sum(cp.multiply(mass, cp.log_sum_exp(outputs, axis=1))) - cp.sum(cp.multiply(targets, outputs))
    raise ValueError(f"loss is {loss!r}; expected one of {LOSSES}")


def convex_program_optimum(
    inputs: FloatArray,  # (n, d)
    targets: FloatArray,  # (n,) or (n, 1)
    loss: str,
    beta: float,
    *,
    slope: float = 0.0,
    bias: bool = False,
    patterns: FloatArray | None = None,
) -> ProgramOptimum:
    """Two-layer (leaky) ReLU networks with one output, any number of neurons: exact, by all sign patterns.

    ``min loss(sum_i G_i X (v_i - w_i) + b) + beta sum ||v_i|| + ||w_i||`` with v_i, w_i in the closed cell of pattern i.
    ``bias`` adds an output bias without penalty; a first-layer bias is a column of ones in ``inputs``.
    """
    n, d = inputs.shape
    targets = targets.reshape(n, 1)
    patterns = enumerate_patterns(inputs) if patterns is None else patterns
    number = len(patterns)
    gates = np.where(patterns > 0, 1.0, slope)  # (number, n)
    positive, negative = cp.Variable((d, number)), cp.Variable((d, number))
    outputs = cp.sum(cp.multiply(gates.T, inputs @ (positive - negative)), axis=1)
    outputs = cp.reshape(outputs, (n, 1), order="C")
    if bias:
        outputs = outputs + cp.Variable()
    penalty = cp.sum(cp.norm(positive, 2, axis=0)) + cp.sum(cp.norm(negative, 2, axis=0))
    cells = [cp.multiply(patterns.T, inputs @ positive) >= 0, cp.multiply(patterns.T, inputs @ negative) >= 0]
    return _solved(cp.Problem(cp.Minimize(loss_expression(outputs, targets, loss) + beta * penalty), cells), outputs)


def gated_program_optimum(
    inputs: FloatArray,  # (n, d)
    targets: FloatArray,  # (n, c)
    masks: FloatArray,  # (num_gates, n)
    loss: str,
    beta: float,
    *,
    bias: bool = False,
) -> ProgramOptimum:
    """Networks whose branches use these gates: ``min loss(sum_k D_k X Z_k + b) + beta sum ||Z_k||_*``, any depth."""
    n, c = targets.shape
    blocks = [cp.Variable((inputs.shape[1], c)) for _ in masks]
    outputs = sum((mask[:, None] * inputs) @ block for mask, block in zip(masks, blocks, strict=True))
    if bias:
        outputs = outputs + np.ones((n, 1)) @ cp.Variable((1, c))
    norms = [cp.norm(block, 2) if c == 1 else cp.normNuc(block) for block in blocks]
    return _solved(cp.Problem(cp.Minimize(loss_expression(outputs, targets, loss) + beta * sum(norms))), outputs)


def linear_program_optimum(
    inputs: FloatArray, targets: FloatArray, loss: str, beta: float, *, bias: bool = False
) -> ProgramOptimum:
    """Parallel linear networks of any depth: nuclear norm regression."""
    return gated_program_optimum(inputs, targets, np.ones((1, len(inputs))), loss, beta, bias=bias)


def _solved(problem: cp.Problem, outputs: cp.Expression) -> ProgramOptimum:
    # The tightest tolerance the solver can meet: exponential cones stall short of 1e-10 on some processors.
    for tolerance in (1e-10, 1e-9, 1e-8):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Solution may be inaccurate")
            problem.solve(solver=cp.CLARABEL, tol_gap_abs=tolerance, tol_gap_rel=tolerance, tol_feas=tolerance)
        if problem.status == cp.OPTIMAL:
            break
    else:
        raise RuntimeError(f"Clarabel ended with status {problem.status}")
    value = np.asarray(outputs.value, dtype=np.float64)
    return ProgramOptimum(value=float(problem.value), outputs=value.reshape(len(value), -1))
