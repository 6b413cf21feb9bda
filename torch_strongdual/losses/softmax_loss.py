"""Cross-entropy over classes."""

from __future__ import annotations

import math
from typing import final

import numpy as np
import torch
from torch import Tensor

from torch_strongdual._checks import check_finite, check_floating, check_ndim, check_positive
from torch_strongdual.errors import InvalidInputError, ShapeError
from torch_strongdual.losses._arrays import as_array, as_float64, as_tensor, check_max_scale, finite_array
from torch_strongdual.losses._bias import softmax_bias
from torch_strongdual.losses._entropy import best_entropy_scale, entropy_lower, entropy_objective
from torch_strongdual.losses._feasible import to_feasible_point
from torch_strongdual.losses._lattice import exactly_feasible
from torch_strongdual.losses._rounding import FUNCTION_ERROR, TINY, UNIT, Array, quotient_down, sum_up
from torch_strongdual.losses.abstract_dual_loss import AbstractDualLoss, FeasiblePoint

__all__ = ["SoftmaxLoss"]


@final
class SoftmaxLoss(AbstractDualLoss):
    r"""Cross-entropy of logits with a matrix of non-negative class targets.

    With targets T (hard or soft labels, times weights) and masses :math:`m_i = \sum_k T_{ik}`:

    .. math::
        \ell(F) = \tfrac1N \sum_i m_i \log \sum_k e^{F_{ik}} - \langle T_i, F_i \rangle, \qquad
        D(\Lambda) = \tfrac1N \sum_i m_i H\bigl((T_i - N \Lambda_i) / m_i\bigr)

    where H is the entropy and :math:`T - N \Lambda \ge 0`, :math:`\Lambda 1 = 0` is the domain. The exact loss is the one with
    the float64 numbers T and N.

    Args:
        targets: T, floating, not negative; kept in float64 on its device. Rows need not sum to one.
        normalizer: N, the number averaged over (1 for a sum).

    Shape:
        - targets: (num_samples, num_classes), at least two classes

    Raises:
        ShapeError: If there are fewer than two classes.
        InvalidInputError: If targets are empty, not floating, negative or not finite.

    Example:
        >>> loss = SoftmaxLoss(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), normalizer=2)
        >>> residual = loss.residual(torch.zeros(2, 2))
        >>> residual.tolist()
        [[0.25, -0.25], [-0.25, 0.25]]
        >>> round(loss.dual_objective(residual), 6), round(loss.value(torch.zeros(2, 2)).item(), 6)
        (0.693147, 0.693147)

    References:
        Altschuler, Weed, Rigollet, "Near-linear time approximation algorithms for optimal transport via Sinkhorn iteration",
        NeurIPS 2017, algorithm 2 (the rounding used by :meth:`balanced`). https://arxiv.org/abs/1705.09634
    """

    def __init__(self, targets: Tensor, *, normalizer: float) -> None:
        check_floating("targets", targets)
        check_ndim("targets", targets, 2, "(num_samples, num_classes)")
        if targets.shape[1] < 2:
            raise ShapeError(
                f"`targets` has shape {tuple(targets.shape)}; expected at least two classes, for cross-entropy of one class is "
                "always zero. Use BCEWithLogitsLoss for a single logit."
            )
        if targets.numel() == 0:
            raise InvalidInputError(f"`targets` is empty (shape {tuple(targets.shape)}); expected at least one sample.")
        check_finite("targets", targets)
        if (targets < 0).any():
            raise InvalidInputError(f"`targets` holds {targets.min().item():g}; expected class weights >= 0.")
        check_positive("normalizer", normalizer)
        self._targets = targets.detach().to(torch.float64, copy=True)
        self._normalizer = float(normalizer)
        masses = [math.fsum(row) for row in self._targets.tolist()]
        self._mass = torch.tensor(masses, dtype=torch.float64, device=targets.device)

    @property
    def targets(self) -> Tensor:
        """Targets, float64, weights included."""
        return self._targets

    @property
    def normalizer(self) -> float:
        """The number averaged over."""
        return self._normalizer

    def value(self, outputs: Tensor) -> Tensor:
        """Loss at ``outputs`` as a differentiable float64 scalar."""
        logits = as_float64("outputs", outputs, self._targets)
        return -(self._targets * torch.log_softmax(logits, dim=1)).sum() / self._normalizer

    def value_upper(self, outputs: Tensor, output_error: Tensor) -> float:
        """Upper bound on the exact loss: each class's own logit at its lowest, all others at their highest."""
        logits = as_array("outputs", outputs, self._targets)
        margin = as_array("output_error", output_error, self._targets)
        if not (np.isfinite(logits).all() and np.isfinite(margin).all()):
            return math.inf
        targets = self._array
        terms = [np.zeros(0)]
        for label in range(self.num_outputs):
            rows = np.flatnonzero(targets[:, label] > 0)
            upper = _log_inverse_probability_upper(logits[rows], margin[rows], label)
            terms.append(targets[rows, label] * upper * (1 + 4 * UNIT) + TINY)
        return math.nextafter(sum_up(*terms) / self._normalizer, math.inf)

    def residual(self, outputs: Tensor) -> Tensor:
        """``(targets - mass * softmax(outputs)) / normalizer``, rows of zero sum."""
        logits = as_float64("outputs", outputs.detach(), self._targets)
        probabilities = torch.softmax(logits, dim=1)
        difference = self._targets - self._mass[:, None] * probabilities
        # The entry of the likeliest class cancels where the sample is fitted well: the others sum to its negative precisely.
        likeliest = probabilities.argmax(dim=1, keepdim=True)
        difference = difference.scatter(1, likeliest, 0.0)
        return difference.scatter(1, likeliest, -difference.sum(dim=1, keepdim=True)) / self._normalizer

    def dual_objective(self, dual_point: Tensor) -> float:
        """Sum of entropies, ``-inf`` outside the domain."""
        point = as_array("dual_point", dual_point, self._targets)
        return entropy_objective(self._array, point, self._masses, self._normalizer)

    def feasible_point(self, dual_point: Tensor, *, output_bias: bool) -> FeasiblePoint:
        """Certify a dual point, see :meth:`AbstractDualLoss.feasible_point`."""
        point = as_array("dual_point", dual_point, self._targets)
        upper = quotient_down(self._array, self._normalizer)
        magnitude = np.abs(point) + self._masses[:, None] / self._normalizer
        exact = exactly_feasible(
            point, np.full_like(point, -np.inf), upper, magnitude=magnitude, zero_rows=True, zero_columns=output_bias
        )
        return to_feasible_point(dual_point, point, exact, self._dual_lower)

    def balanced(self, dual_point: Tensor) -> Tensor:
        """Round the masses to the class totals: shrink the classes that hold too much, give the rest to the others."""
        point = finite_array("dual_point", dual_point, self._targets)
        excess = point.sum(axis=0)  # negative: the class holds more mass than its targets do
        remaining = np.maximum(self._array - self._normalizer * point, 0.0)
        held = remaining.sum(axis=0)
        freed = remaining * np.divide(np.maximum(-excess, 0.0), held, out=np.zeros_like(held), where=held > 0)
        wanted = np.maximum(excess, 0.0)
        if wanted.any():
            point = point + freed - freed.sum(axis=1, keepdims=True) * (wanted / wanted.sum())
        # Where a class has no targets, no sample can lower its mass below zero: columns of absent classes are zero.
        point = np.where(self._array > 0, point, np.minimum(point, 0.0))
        return as_tensor(np.where(self._array.sum(axis=0) > 0, point, 0.0), self._targets)

    def best_scale(self, dual_point: Tensor, max_scale: float) -> float:
        """Bisection of the slope of a concave function."""
        check_max_scale(max_scale)
        point = finite_array("dual_point", dual_point, self._targets)
        return best_entropy_scale(self._array, point, self._normalizer, self._masses, max_scale)

    def fitted_bias(self, outputs: Tensor) -> Tensor:
        """Newton's method, all classes at once; the bias sums to zero, absent classes are pushed far below the others."""
        logits = finite_array("outputs", outputs, self._targets)
        return as_tensor(softmax_bias(logits, self._masses, self._array.sum(axis=0)), self._targets)

    @property
    def _array(self) -> Array:
        return np.asarray(self._targets.cpu().numpy())

    @property
    def _masses(self) -> Array:
        return np.asarray(self._mass.cpu().numpy())

    def _dual_lower(self, exact: Array) -> float:
        return entropy_lower(self._array, exact, self._masses, self._normalizer)


def _log_inverse_probability_upper(logits: Array, margin: Array, label: int) -> Array:
    """Upper bounds on ``log sum_j exp(F_j - F_label)`` for all F within the margin, to full relative precision."""
    difference = logits - logits[:, [label]]
    raised = difference + (margin + margin[:, [label]]) * (1 + 4 * UNIT) + 4 * UNIT * np.abs(difference)
    raised += 2 * UNIT * np.abs(raised)
    raised[:, label] = 0.0
    largest = raised.max(axis=1, keepdims=True)
    distance = raised - largest
    weights = np.exp(distance + 4 * UNIT * np.abs(distance)) + TINY
    np.put_along_axis(weights, raised.argmax(axis=1)[:, None], 0.0, axis=1)
    num_classes = logits.shape[1]
    widening = 1 + 4 * FUNCTION_ERROR + 4 * num_classes * UNIT
    upper: Array = (largest[:, 0] + np.log1p(weights.sum(axis=1))) * widening
    return upper
