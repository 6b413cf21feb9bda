"""Output biases that minimise a loss: roots of monotone functions, and a Newton method for softmax."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from torch_strongdual.losses._rounding import Array

__all__ = ["ABSENT_MARGIN", "decreasing_root", "softmax_bias"]

ABSENT_MARGIN = 50.0
"""Logits by which a class without samples is pushed below the others: its probability is 2e-22, that is no longer felt."""

_BISECTIONS = 120  # enough to get from any bracket of ordinary numbers to two neighbouring floats
_NEWTON_STEPS = 60
_LARGEST_STEP = 8.0  # in units of the temperature: a quadratic model of log-sum-exp says nothing beyond
_HALVINGS = 40
_RTOL = 1e-14


def decreasing_root(function: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Roots, one a column, of functions that decrease from ``low`` (value >= 0) to ``high`` (value <= 0)."""
    for _ in range(_BISECTIONS):
        middle = low + 0.5 * (high - low)
        is_left = function(middle) > 0
        low, high = np.where(is_left, middle, low), np.where(is_left, high, middle)
    values = np.abs(np.stack([function(low), function(high)]))
    return np.where(values[0] < values[1], low, high)


def softmax_bias(logits: Array, mass: Array, class_mass: Array) -> Array:
    r"""The bias of zero sum that minimises :math:`\sum_i m_i \log\sum_k e^{F_{ik} + b_k} - \langle t, b \rangle`.

    Classes of no mass get a bias far below the others (their infimum is at infinity). Saturated logits leave Newton's method
    without curvature, so the temperature is lowered to 1 by halves, each solution starting the next.

    Args:
        logits: Shape ``(num_samples, num_classes)``.
        mass: Weights of samples, shape ``(num_samples,)``.
        class_mass: Weights of classes, shape ``(num_classes,)``, of the same sum.
    """
    is_present = class_mass > 0
    if not is_present.any():
        return np.zeros_like(class_mass)
    present = logits[:, is_present]
    centre = present.mean(axis=0)
    present = present - centre  # the solution for a single sample, and a start that any shift of columns leaves alone
    bias = np.log(class_mass[is_present] / class_mass.sum())
    spread = float(np.ptp(present, axis=0).max())
    temperature = 2.0 ** np.ceil(np.log2(max(spread / 4, 1.0)))
    while True:
        bias = _newton(present, mass, class_mass[is_present], bias, temperature)
        if temperature <= 1:
            break
        temperature /= 2
    full = np.zeros_like(class_mass)
    full[is_present] = bias - centre
    lowest = (present + bias).max(axis=1)[:, None] - logits
    full[~is_present] = lowest[:, ~is_present].min(axis=0) - ABSENT_MARGIN
    centred: Array = full - full.mean()
    return centred


def _newton(logits: Array, mass: Array, class_mass: Array, bias: Array, temperature: float) -> Array:
    """Newton's method with shrinking steps for the loss at a temperature."""
    total = class_mass.sum()
    state = _state(logits, mass, class_mass, bias, temperature)
    for _ in range(_NEWTON_STEPS):
        if np.abs(state.gradient).max() <= _RTOL * total:
            break
        hessian = _laplacian(state.probabilities, mass)
        # The constant direction has no curvature and no gradient; the small multiple of the identity bounds saturated steps.
        hessian = hessian + np.full_like(hessian, total / len(bias) ** 2) + 1e-14 * total * np.eye(len(bias))
        step = -temperature * np.linalg.solve(hessian, state.gradient)
        step *= min(1.0, _LARGEST_STEP * temperature / np.abs(step).max())
        for _ in range(_HALVINGS):
            trial = _state(logits, mass, class_mass, bias + step, temperature)
            if _is_progress(state, trial, float(state.gradient @ step)):
                break
            step = step / 2
        else:
            break
        bias, state = bias + step, trial
    return bias


@dataclass(frozen=True, slots=True)
class _State:
    """Loss (up to a constant) at a bias, what its rounding error may be, class probabilities, gradient."""

    loss: float
    rounding: float
    probabilities: Array
    gradient: Array


def _is_progress(state: _State, trial: _State, slope: float) -> bool:
    """The loss decides; next to the optimum, where rounding hides its decrease, the gradient does."""
    if abs(trial.loss - state.loss) <= state.rounding:
        return bool(np.abs(trial.gradient).max() < np.abs(state.gradient).max())
    return trial.loss - state.loss <= 1e-4 * slope


def _state(logits: Array, mass: Array, class_mass: Array, bias: Array, temperature: float) -> _State:
    shifted = (logits + bias) / temperature
    largest = shifted.max(axis=1)
    weights = np.exp(shifted - largest[:, None])
    sums = weights.sum(axis=1)
    probabilities = weights / sums[:, None]
    size = temperature * float(mass @ np.abs(largest)) + float(class_mass @ np.abs(bias)) + temperature * float(mass.sum())
    return _State(
        loss=temperature * float(mass @ (largest + np.log(sums))) - float(class_mass @ bias),
        rounding=1e-14 * size,
        probabilities=probabilities,
        gradient=mass @ probabilities - class_mass,
    )


def _laplacian(probabilities: Array, mass: Array) -> Array:
    """``diag(sum m p) - sum m p p'``, with the diagonal from the rest, so that tiny curvatures do not cancel."""
    hessian: Array = -(probabilities.T * mass) @ probabilities
    np.fill_diagonal(hessian, 0.0)
    np.fill_diagonal(hessian, -hessian.sum(axis=1))
    return hessian
