"""Output biases that minimise a loss: roots of monotone functions, and a Newton method for softmax."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from torch_strongdual.losses._rounding import Array

__all__ = ["ABSENT_MARGIN", "decreasing_root", "softmax_bias"]

ABSENT_MARGIN = 50.0
"""Logits by which a class without samples is pushed below the others: its probability is 2e-22, that is no longer felt."""

_BISECTIONS = 120  # enough to get from any bracket of ordinary numbers to two neighbouring floats
_NEWTON_STEPS = 60
_LARGEST_STEP = 8.0  # in units of the temperature: a quadratic model of log-sum-exp says nothing beyond
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
    spread = float(np.ptp(present - present.mean(axis=1, keepdims=True), axis=0).max(initial=0.0))
    temperature = 2.0 ** np.ceil(np.log2(max(spread / 4, 1.0)))
    bias = np.log(class_mass[is_present] / class_mass.sum())
    while True:
        bias = _newton(present, mass, class_mass[is_present], bias, temperature)
        if temperature <= 1:
            break
        temperature /= 2
    bias = bias - bias.mean()
    full = np.zeros_like(class_mass)
    full[is_present] = bias
    lowest = (present + bias).max(axis=1)[:, None] - logits
    full[~is_present] = lowest[:, ~is_present].min(axis=0) - ABSENT_MARGIN
    centred: Array = full - full.mean()
    return centred


def _newton(logits: Array, mass: Array, class_mass: Array, bias: Array, temperature: float) -> Array:
    """Newton's method with shrinking steps for the loss at a temperature."""
    total = class_mass.sum()
    shift, probabilities, gradient = _state(logits, mass, class_mass, bias, temperature)
    for _ in range(_NEWTON_STEPS):
        if np.abs(gradient).max() <= _RTOL * total:
            break
        hessian = _laplacian(probabilities, mass)
        # The constant direction has no curvature and no gradient; the small multiple of the identity bounds saturated steps.
        hessian = hessian + np.full_like(hessian, total / len(bias) ** 2) + 1e-14 * total * np.eye(len(bias))
        step = -temperature * np.linalg.solve(hessian, gradient)
        step *= min(1.0, _LARGEST_STEP * temperature / np.abs(step).max())
        for _ in range(40):
            trial = _state(logits, mass, class_mass, bias + step, temperature)
            # The loss decides; next to the optimum, where rounding hides its decrease, the gradient does.
            is_lower = trial[0] - shift <= 1e-4 * (gradient @ step)
            is_flatter = abs(trial[0] - shift) <= 1e-12 * total * temperature and (
                np.abs(trial[2]).max() < np.abs(gradient).max()
            )
            if is_lower or is_flatter:
                break
            step = step / 2
        else:
            return bias
        bias = bias + step
        shift, probabilities, gradient = trial
    return bias


def _state(logits: Array, mass: Array, class_mass: Array, bias: Array, temperature: float) -> tuple[float, Array, Array]:
    """Loss (up to a constant), probabilities, gradient."""
    shifted = (logits + bias) / temperature
    largest = shifted.max(axis=1, keepdims=True)
    weights = np.exp(shifted - largest)
    sums = weights.sum(axis=1, keepdims=True)
    probabilities = weights / sums
    loss = temperature * float(mass @ (largest + np.log(sums))[:, 0]) - float(class_mass @ bias)
    return loss, probabilities, mass @ probabilities - class_mass


def _laplacian(probabilities: Array, mass: Array) -> Array:
    """``diag(sum m p) - sum m p p'``, with the diagonal from the rest, so that tiny curvatures do not cancel."""
    hessian: Array = -(probabilities.T * mass) @ probabilities
    np.fill_diagonal(hessian, 0.0)
    np.fill_diagonal(hessian, -hessian.sum(axis=1))
    return hessian
