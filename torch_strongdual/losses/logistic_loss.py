"""Binary cross-entropy with logits."""

from __future__ import annotations

import math
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from torch_strongdual._checks import check_finite, check_positive
from torch_strongdual.errors import InvalidInputError
from torch_strongdual.losses._arrays import as_array, as_float64, as_tensor, check_max_scale, checked_targets, finite_array
from torch_strongdual.losses._bias import ABSENT_MARGIN, decreasing_root
from torch_strongdual.losses._entropy import best_entropy_scale, entropy_lower, entropy_objective
from torch_strongdual.losses._feasible import to_feasible_point
from torch_strongdual.losses._lattice import exactly_feasible
from torch_strongdual.losses._rounding import FUNCTION_ERROR, TINY, Array, quotient_down, sum_up
from torch_strongdual.losses.abstract_dual_loss import AbstractDualLoss, FeasiblePoint

__all__ = ["LogisticLoss"]


@final
class LogisticLoss(AbstractDualLoss):
    r"""Weighted binary cross-entropy of logits with soft targets.

    With :math:`a = p\,y` (p the weight of positives), :math:`b = 1 - y`, :math:`m = a + b`:

    .. math::
        \ell(F) = \tfrac1N \sum a \log(1 + e^{-F}) + b \log(1 + e^{F}), \qquad
        D(\Lambda) = \tfrac1N \sum m H_b(q),\quad q = (a - N \Lambda) / m \in [0, 1]

    where :math:`H_b` is the binary entropy. The exact loss is the one with the float64 numbers a, b and N.

    Args:
        targets: y in [0, 1], floating; kept in float64 on its device.
        normalizer: N, the number averaged over (1 for a sum).
        positive_weight: p >= 0, a scalar tensor or one number an output.

    Shape:
        - targets: (num_samples, out_features)
        - positive_weight: () or (out_features,)

    Raises:
        InvalidInputError: If targets are empty, not floating or outside [0, 1], or weights negative or not finite.

    Example:
        >>> loss = LogisticLoss(torch.tensor([[0.0], [1.0]]), normalizer=2)
        >>> residual = loss.residual(torch.zeros(2, 1))
        >>> residual.flatten().tolist()
        [-0.25, 0.25]
        >>> round(loss.dual_objective(residual), 6), round(loss.value(torch.zeros(2, 1)).item(), 6)
        (0.693147, 0.693147)
    """

    def __init__(self, targets: Tensor, *, normalizer: float, positive_weight: Tensor | None = None) -> None:
        self._targets = checked_targets(targets)
        outside = targets[(targets < 0) | (targets > 1)]
        if outside.numel():
            raise InvalidInputError(
                f"`targets` holds {outside.numel()} of {targets.numel()} numbers outside [0, 1], the first "
                f"{outside[0].item():g}; expected probabilities of the positive class. Map labels -1/+1 to 0/1."
            )
        check_positive("normalizer", normalizer)
        self._normalizer = float(normalizer)
        self._weight = None if positive_weight is None else _checked_weight(positive_weight, targets)
        self._positive = self._targets if self._weight is None else self._targets * self._weight
        self._negative = 1 - self._targets

    @property
    def targets(self) -> Tensor:
        """Targets, float64, without weights."""
        return self._targets

    @property
    def normalizer(self) -> float:
        """The number averaged over."""
        return self._normalizer

    @property
    def positive_weight(self) -> Tensor:  # shape: () or (1,) or (out_features,)
        """Weight of positives, float64; one if none was given."""
        return torch.ones((), dtype=torch.float64) if self._weight is None else self._weight

    def value(self, outputs: Tensor) -> Tensor:
        """Loss at ``outputs`` as a differentiable float64 scalar."""
        logits = as_float64("outputs", outputs, self._targets)
        return -(self._positive * logsigmoid(logits) + self._negative * logsigmoid(-logits)).sum() / self._normalizer

    def value_upper(self, outputs: Tensor, output_error: Tensor) -> float:
        """Upper bound on the exact loss: each term is convex, so its maximum over an interval is at an end."""
        logits = as_array("outputs", outputs, self._targets)
        margin = as_array("output_error", output_error, self._targets)
        with np.errstate(over="ignore", invalid="ignore"):
            ends = (np.nextafter(logits - margin, -np.inf), np.nextafter(logits + margin, np.inf))
            terms = np.maximum(*(self._terms(end) for end in ends)) * (1 + 4 * FUNCTION_ERROR) + TINY
        upper = math.nextafter(sum_up(terms) / self._normalizer, math.inf)
        return upper if not math.isnan(upper) else math.inf

    def residual(self, outputs: Tensor) -> Tensor:
        """``(positive part * sigmoid(-outputs) - negative part * sigmoid(outputs)) / normalizer``."""
        logits = as_float64("outputs", outputs.detach(), self._targets)
        return (self._positive * torch.sigmoid(-logits) - self._negative * torch.sigmoid(logits)) / self._normalizer

    def dual_objective(self, dual_point: Tensor) -> float:
        """Sum of binary entropies, ``-inf`` outside the domain."""
        point = as_array("dual_point", dual_point, self._targets)
        return entropy_objective(self._class_targets, _two_classes(point), self._mass, self._normalizer)

    def feasible_point(self, dual_point: Tensor, *, output_bias: bool) -> FeasiblePoint:
        """Certify a dual point, see :meth:`AbstractDualLoss.feasible_point`."""
        point = as_array("dual_point", dual_point, self._targets)
        upper = quotient_down(self._class_targets[..., 0], self._normalizer)
        lower = -quotient_down(self._class_targets[..., 1], self._normalizer)
        magnitude = np.abs(point) + self._mass / self._normalizer
        exact = exactly_feasible(point, lower, upper, magnitude=magnitude, zero_rows=False, zero_columns=output_bias)
        return to_feasible_point(dual_point, point, exact, self._dual_lower)

    def balanced(self, dual_point: Tensor) -> Tensor:
        """Shrink the masses of the class that holds more than its targets do, in each column."""
        point = finite_array("dual_point", dual_point, self._targets)
        remaining = np.maximum(self._class_targets - self._normalizer * _two_classes(point), 0.0)
        excess = point.sum(axis=0)  # positive: the negative class holds too much
        heavier = np.where(excess > 0, remaining[..., 1], remaining[..., 0])
        weight = heavier.sum(axis=0)
        point = point - heavier * np.divide(excess, weight, out=np.zeros_like(excess), where=weight > 0)
        has_both = (self._class_targets.sum(axis=0) > 0).all(axis=-1)
        return as_tensor(np.where(has_both, point, 0.0), self._targets)

    def best_scale(self, dual_point: Tensor, max_scale: float) -> float:
        """Bisection of the slope of a concave function."""
        check_max_scale(max_scale)
        point = finite_array("dual_point", dual_point, self._targets)
        return best_entropy_scale(self._class_targets, _two_classes(point), self._normalizer, self._mass, max_scale)

    def fitted_bias(self, outputs: Tensor) -> Tensor:
        """Root of the summed residual of each column; where a class is absent, far enough that its loss is nil."""
        logits = finite_array("outputs", outputs, self._targets)
        positive, negative = np.moveaxis(self._class_targets, -1, 0)
        totals = self._class_targets.sum(axis=0)
        has_both = (totals > 0).all(axis=-1)
        odds = np.log(np.where(has_both, totals[:, 0], 1.0)) - np.log(np.where(has_both, totals[:, 1], 1.0))
        root = decreasing_root(
            lambda bias: (positive * _sigmoid(-logits - bias) - negative * _sigmoid(logits + bias)).sum(axis=0),
            odds - logits.max(axis=0) - 1e-6,
            odds - logits.min(axis=0) + 1e-6,
        )
        absent = np.where(totals[:, 0] > 0, ABSENT_MARGIN - logits.min(axis=0), -ABSENT_MARGIN - logits.max(axis=0))
        absent = np.where((totals > 0).any(axis=-1), absent, 0.0)
        return as_tensor(np.where(has_both, root, absent), self._targets)

    @property
    def _class_targets(self) -> Array:  # shape: (num_samples, out_features, 2)
        return np.asarray(torch.stack([self._positive, self._negative], dim=-1).cpu().numpy())

    @property
    def _mass(self) -> Array:
        return np.asarray((self._positive + self._negative).cpu().numpy())

    def _terms(self, logits: Array) -> Array:
        tail = np.log1p(np.exp(-np.abs(logits)))
        positive, negative = np.moveaxis(self._class_targets, -1, 0)
        terms: Array = positive * (np.maximum(-logits, 0.0) + tail) + negative * (np.maximum(logits, 0.0) + tail)
        return terms

    def _dual_lower(self, exact: Array) -> float:
        return entropy_lower(self._class_targets, _two_classes(exact), self._mass, self._normalizer)


def _checked_weight(weight: Tensor, targets: Tensor) -> Tensor:
    check_finite("positive_weight", weight)
    num_outputs = targets.shape[1]
    if tuple(weight.shape) not in ((), (1,), (num_outputs,)):
        raise InvalidInputError(
            f"`positive_weight` has shape {tuple(weight.shape)}; expected () or ({num_outputs},), that is one number an output."
        )
    if (weight < 0).any():
        raise InvalidInputError(f"`positive_weight` holds {weight.min().item():g}; expected numbers >= 0.")
    return weight.detach().to(device=targets.device, dtype=torch.float64)


def _two_classes(point: Array) -> Array:
    return np.stack([point, -point], axis=-1)


def _sigmoid(logits: Array) -> Array:
    tail = np.exp(-np.abs(logits))
    sigmoid: Array = np.where(logits >= 0, 1.0, tail) / (1.0 + tail)
    return sigmoid
