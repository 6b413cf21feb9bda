"""Squared, Huber, smooth absolute and absolute loss: one family, one conjugate."""

from __future__ import annotations

import math
from typing import final

import numpy as np
import torch
from torch import Tensor

from torch_strongdual._checks import check_positive
from torch_strongdual.errors import InvalidInputError
from torch_strongdual.losses._arrays import as_array, as_float64, as_tensor, check_max_scale, checked_targets, finite_array
from torch_strongdual.losses._bias import decreasing_root
from torch_strongdual.losses._feasible import to_feasible_point
from torch_strongdual.losses._lattice import exactly_feasible
from torch_strongdual.losses._rounding import TINY, UNIT, Array, exact_product, quotient_down, sum_up
from torch_strongdual.losses.abstract_dual_loss import AbstractDualLoss, FeasiblePoint

__all__ = ["HuberFamilyLoss"]

_DOMAIN_RTOL = 1e-12


@final
class HuberFamilyLoss(AbstractDualLoss):
    r"""Losses :math:`\frac1N \sum \psi(F - Y)` that are quadratic near zero and linear beyond.

    .. math::
        \psi(r) = \begin{cases} r^2 / (2 \tau) & |r| \le \delta \tau \\ \delta (|r| - \delta \tau / 2) & \text{otherwise}
        \end{cases}
        \qquad
        D(\Lambda) = \langle \Lambda, Y \rangle - \tfrac{N \tau}{2} \|\Lambda\|_F^2 \quad\text{on } |\Lambda| \le \delta / N

    ===================== ============= ============
    torch module          ``width``     ``slope_bound``
    ===================== ============= ============
    ``MSELoss``           1/2           inf
    ``HuberLoss(delta)``  1             delta
    ``SmoothL1Loss(b)``   b             1
    ``L1Loss``            0             1
    ===================== ============= ============

    The three parameters are taken as the exact real numbers these floats are: bounds hold for the loss as written above.

    Args:
        targets: Y, floating, finite; kept in float64 on its device.
        normalizer: N, the number averaged over (1 for a sum).
        width: :math:`\tau`, the inverse curvature at zero; 0 for the absolute loss.
        slope_bound: :math:`\delta`, the largest slope; ``inf`` for the squared loss.

    Shape:
        - targets: (num_samples, out_features)

    Raises:
        InvalidInputError: If targets are empty, not floating or not finite, or a parameter is out of range.

    Example:
        >>> loss = HuberFamilyLoss(torch.tensor([[1.0], [3.0]]), normalizer=2, width=0.5, slope_bound=float("inf"))
        >>> outputs = torch.tensor([[1.0], [1.0]])
        >>> loss.value(outputs)
        tensor(2., dtype=torch.float64)
        >>> loss.dual_objective(loss.residual(outputs)), (loss.residual(outputs) * outputs).sum().item()
        (4.0, 2.0)

    References:
        Beck, "First-Order Methods in Optimization", SIAM 2017, sections 4.4 and 6.7 (conjugates, Huber function).
    """

    def __init__(self, targets: Tensor, *, normalizer: float, width: float, slope_bound: float) -> None:
        self._targets = checked_targets(targets)
        check_positive("normalizer", normalizer)
        check_positive("slope_bound", slope_bound)
        if not 0 <= width < math.inf or (width == 0 and slope_bound == math.inf):
            raise InvalidInputError(
                f"`width` is {width!r} with `slope_bound` {slope_bound!r}; expected a finite width >= 0, and > 0 for a loss "
                "without slope bound."
            )
        self._normalizer, self._width, self._slope_bound = float(normalizer), float(width), float(slope_bound)

    @property
    def targets(self) -> Tensor:
        """Targets, float64."""
        return self._targets

    @property
    def normalizer(self) -> float:
        """The number averaged over."""
        return self._normalizer

    @property
    def width(self) -> float:
        """Inverse curvature at zero; 0 for the absolute loss."""
        return self._width

    @property
    def slope_bound(self) -> float:
        """Largest slope; ``inf`` for the squared loss."""
        return self._slope_bound

    def value(self, outputs: Tensor) -> Tensor:
        """Loss at ``outputs`` as a differentiable float64 scalar."""
        error = as_float64("outputs", outputs, self._targets) - self._targets
        if self._slope_bound == math.inf:
            return error.square().sum() / (2 * self._width * self._normalizer)
        kink = self._slope_bound * self._width
        linear = self._slope_bound * (error.abs() - 0.5 * kink)
        if self._width == 0:
            return linear.sum() / self._normalizer
        # The quadratic is evaluated on a clipped argument, so that its gradient cannot overflow where it is not chosen.
        quadratic = error.clamp(-kink, kink).square() / (2 * self._width)
        return torch.where(error.abs() <= kink, quadratic, linear).sum() / self._normalizer

    def value_upper(self, outputs: Tensor, output_error: Tensor) -> float:
        """Upper bound on the exact loss: it grows with the distance from the target, so the largest distance gives it."""
        given = as_array("outputs", outputs, self._targets)
        margin = as_array("output_error", output_error, self._targets)
        with np.errstate(over="ignore", invalid="ignore"):
            distance = (np.abs(given - self._array) * (1 + 2 * UNIT) + margin) * (1 + 2 * UNIT)
            kink = self._slope_bound * self._width
            quadratic = np.square(distance) / (2 * self._width) if self._width > 0 else np.full_like(distance, np.inf)
            linear = self._slope_bound * (distance - 0.5 * kink) if kink < math.inf else quadratic
            # The quadratic is an upper bound everywhere, the line only beyond the kink.
            terms = np.where(distance >= kink * (1 + 8 * UNIT), linear, quadratic) * (1 + 16 * UNIT) + TINY
        upper = math.nextafter(sum_up(terms) / self._normalizer, math.inf)
        return upper if not math.isnan(upper) else math.inf

    def residual(self, outputs: Tensor) -> Tensor:
        """``(targets - outputs)`` divided by the width, clipped to the slope bound, divided by the normaliser."""
        error = self._targets - as_float64("outputs", outputs.detach(), self._targets)
        slope = error / self._width if self._width > 0 else torch.sign(error) * self._slope_bound
        return slope.clamp(-self._slope_bound, self._slope_bound) / self._normalizer

    def dual_objective(self, dual_point: Tensor) -> float:
        """``<dual_point, targets> - normalizer * width / 2 * |dual_point|^2`` in the box, ``-inf`` outside."""
        point = as_array("dual_point", dual_point, self._targets)
        if not np.isfinite(point).all() or np.abs(point).max() > self._bound * (1 + _DOMAIN_RTOL):
            return -math.inf
        linear, squares = _exact_dot(point, self._array), _exact_dot(point, point)
        return linear - 0.5 * self._normalizer * self._width * squares

    def feasible_point(self, dual_point: Tensor, *, output_bias: bool) -> FeasiblePoint:
        """Certify a dual point, see :meth:`AbstractDualLoss.feasible_point`."""
        point = as_array("dual_point", dual_point, self._targets)
        bound = np.full_like(point, quotient_down(np.array(self._slope_bound), self._normalizer))
        magnitude = np.abs(point) + np.where(np.isfinite(bound), bound, 0.0)
        exact = exactly_feasible(point, -bound, bound, magnitude=magnitude, zero_rows=False, zero_columns=output_bias)
        return to_feasible_point(dual_point, point, exact, self._dual_lower)

    def balanced(self, dual_point: Tensor) -> Tensor:
        """Centre the columns, then shrink those that left the box."""
        point = finite_array("dual_point", dual_point, self._targets)
        point = point - point.mean(axis=0)
        point = point - point.mean(axis=0)  # what rounding left
        largest = np.abs(point).max(axis=0)
        shrunk = np.divide(self._bound, largest, out=np.ones_like(largest), where=largest > self._bound)
        return as_tensor(point * shrunk, self._targets)

    def best_scale(self, dual_point: Tensor, max_scale: float) -> float:
        """The vertex of a parabola, clipped to the box; 0 for a zero point."""
        check_max_scale(max_scale)
        point = finite_array("dual_point", dual_point, self._targets)
        largest = float(np.abs(point).max())
        linear, squares = _exact_dot(point, self._array), _exact_dot(point, point)
        if largest == 0 or linear <= 0:
            return 0.0
        curvature = self._normalizer * self._width * squares
        vertex = linear / curvature if curvature > 0 else math.inf
        scale = min(vertex, self._bound / largest, max_scale)
        return scale if math.isfinite(scale) else 0.0

    def fitted_bias(self, outputs: Tensor) -> Tensor:
        """Mean residual for the squared loss, median for the absolute one, the exact root between them."""
        error = self._array - finite_array("outputs", outputs, self._targets)
        if self._slope_bound == math.inf:
            bias = error.mean(axis=0)
            return as_tensor(bias + (error - bias).mean(axis=0), self._targets)
        if self._width == 0:
            return as_tensor(np.median(error, axis=0), self._targets)
        kink = self._slope_bound * self._width
        root = decreasing_root(
            lambda bias: np.clip(error - bias, -kink, kink).sum(axis=0), error.min(axis=0), error.max(axis=0)
        )
        return as_tensor(root, self._targets)

    @property
    def _array(self) -> Array:
        return np.asarray(self._targets.cpu().numpy())

    @property
    def _bound(self) -> float:
        return self._slope_bound / self._normalizer

    def _dual_lower(self, exact: Array) -> float:
        """Both sums are of exact products, so the only errors are eight roundings of the results."""
        linear, squares = _exact_dot(exact, self._array), _exact_dot(exact, exact)
        quadratic = 0.5 * self._normalizer * self._width * squares
        slack = 8 * UNIT * (abs(linear) + abs(quadratic)) + exact.size * TINY * max(1.0, self._normalizer * self._width)
        return math.nextafter(linear - quadratic - slack, -math.inf)


def _exact_dot(left: Array, right: Array) -> float:
    """Inner product, correctly rounded; NaN on overflow."""
    product, error = exact_product(left, right)
    try:
        return math.fsum([*product.ravel().tolist(), *error.ravel().tolist()])
    except (OverflowError, ValueError):
        return math.nan
