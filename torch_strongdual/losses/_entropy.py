r"""The dual objective that cross-entropy over classes and over logits share.

With targets :math:`T_{ik} \ge 0`, masses :math:`m_i = \sum_k T_{ik}` and normaliser N, the loss
:math:`\frac1N \sum_i (m_i \log\sum_k e^{F_{ik}} - \langle T_i, F_i \rangle)` has the dual objective
:math:`\frac1N \sum_i m_i H(U_i / m_i)`, :math:`U = T - N \Lambda`, on :math:`U \ge 0`, :math:`\Lambda 1 = 0`. A logit is the
case of two classes with :math:`(\lambda, -\lambda)`. Classes are the last axis of every array here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from torch_strongdual.losses._rounding import FUNCTION_ERROR, TINY, UNIT, Array, exact_product, exact_sum, sum_down

__all__ = ["best_entropy_scale", "entropy_lower", "entropy_objective", "remaining_mass"]

_RTOL = 1e-12
_BISECTIONS = 80


def remaining_mass(targets: Array, dual_point: Array, normalizer: float) -> tuple[Array, Array]:
    """``targets - normalizer * dual_point`` to full relative precision, and a bound on its absolute error."""
    product, product_error = exact_product(dual_point, normalizer)
    difference, difference_error = exact_sum(targets, -product)
    remaining: Array = difference + (difference_error - product_error)
    error: Array = 2 * UNIT * (np.abs(remaining) + np.abs(difference_error) + np.abs(product_error)) + TINY
    return remaining, error


@dataclass(frozen=True, slots=True)
class _Entropies:
    """Terms ``-U log(U / m)`` as evaluated, and what their errors are made of."""

    terms: Array
    logarithms: Array
    complement: Array
    """``m - U``, summed over the other classes, where the logarithm was evaluated through it; 0 elsewhere."""


def _entropies(remaining: Array, mass: Array) -> _Entropies:
    """Precise also where one class holds nearly everything, there by ``log1p`` of what the others hold."""
    ratio = np.divide(remaining, mass[..., None], out=np.ones_like(remaining), where=remaining > 0)
    dominant = np.zeros_like(remaining, dtype=np.bool_)
    np.put_along_axis(dominant, remaining.argmax(axis=-1)[..., None], True, axis=-1)
    others = np.where(dominant, 0.0, remaining).sum(axis=-1, keepdims=True)
    complement = np.where(dominant & (others < 0.5 * mass[..., None]), others, 0.0)
    complement_ratio = np.divide(complement, mass[..., None], out=np.zeros_like(remaining), where=complement > 0)
    is_certain = dominant & (others == 0)
    logarithms = np.where(complement > 0, np.log1p(-complement_ratio), np.where(is_certain, 0.0, np.log(ratio)))
    return _Entropies(-remaining * logarithms, logarithms, complement)


def entropy_objective(targets: Array, dual_point: Array, mass: Array, normalizer: float) -> float:
    """Dual objective in plain float64; ``-inf`` where masses are negative, or do not add up, by more than rounding."""
    scaled = normalizer * dual_point
    remaining, _ = remaining_mass(targets, dual_point, normalizer)
    allowed = _RTOL * (mass[..., None] + np.abs(scaled))
    is_inside = (remaining >= -allowed).all() and (np.abs(scaled.sum(axis=-1)) <= allowed.sum(axis=-1)).all()
    if not is_inside:  # NaN included
        return -math.inf
    terms = _entropies(np.maximum(remaining, 0.0), mass).terms
    return math.fsum(terms.ravel().tolist()) / normalizer


def entropy_lower(targets: Array, dual_point: Array, mass: Array, normalizer: float) -> float:
    """Proven lower bound on the dual objective at a point that is exactly in the domain.

    Args:
        targets: Exact.
        dual_point: Exact.
        mass: Row sums of the targets, to a relative error of two unit roundoffs.
        normalizer: Exact.
    """
    remaining, error = remaining_mass(targets, dual_point, normalizer)
    remaining = np.maximum(remaining, 0.0)
    entropies = _entropies(remaining, mass)
    num_classes = targets.shape[-1]
    is_precise = entropies.complement > 0
    # d/dU of -U log(U/m) is -log(U/m) - 1, and the logarithm changes by less than 1 while U changes by less than a half. As a
    # function of the complement V and of U as a mere factor, the slopes are in [0, 1] and -log(1 - V/m).
    from_mass = error * (np.abs(entropies.logarithms) + np.where(is_precise, 0.0, 2.5))
    complement_error = np.where(is_precise, 0.0, error).sum(axis=-1, keepdims=True)
    complement_error = complement_error + (4 * num_classes + 8) * UNIT * entropies.complement
    from_argument = np.where(is_precise, complement_error, 8 * UNIT * remaining)
    from_functions = 4 * FUNCTION_ERROR * np.abs(entropies.terms)
    lower = entropies.terms - 1.01 * (from_mass + from_argument + from_functions)
    # Exact entropies are non-negative; where U is as small as its error nothing more is known.
    lower = np.where(remaining >= 2 * error, np.maximum(lower, 0.0), 0.0)
    return math.nextafter(sum_down(lower) / normalizer, -math.inf)


def best_entropy_scale(targets: Array, dual_point: Array, normalizer: float, mass: Array, max_scale: float) -> float:
    """The ``s`` in ``[0, max_scale]`` that maximises the objective at ``s * dual_point``, by bisection of its slope."""
    scaled = normalizer * dual_point
    allowed = _RTOL * mass[..., None]
    scaled = np.where((scaled > targets) & (scaled <= targets + allowed), targets, scaled)  # rounding must not cost scale
    is_used = scaled != 0
    used, available = scaled[is_used], targets[is_used]
    with np.errstate(over="ignore"):
        largest = float(min(max_scale, (available[used > 0] / used[used > 0]).min(initial=np.inf)))
    if used.size == 0 or not math.isfinite(largest):  # nothing to scale, or nothing that limits it
        return 0.0
    log_mass = np.log(np.broadcast_to(mass[..., None], scaled.shape)[is_used])

    def slope(scale: float) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(used @ (np.log(np.maximum(available - scale * used, 0.0)) - log_mass))

    low, high = 0.0, largest
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return low if slope(largest) <= 0 else largest
