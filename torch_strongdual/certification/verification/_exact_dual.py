r"""Dual objectives straight from the table of conjugates, in rational arithmetic; logarithms to 100 decimal digits.

Shares no code with :mod:`torch_strongdual.losses`. Targets with soft labels, smoothing or weights are the float64
numbers that the documented formulas give; from there on nothing is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from torch_strongdual.errors import UnsupportedLossError
from torch_strongdual.losses import HalfSquaredLoss

__all__ = ["ExactDual", "exact_dual"]

Rows = list[list[Fraction]]

_DIGITS = 100
_ERROR = Decimal("1e-90")  # relative to all terms and masses; every operation is off by 1e-100 at most


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactDual:
    """The dual objective at a point.

    Args:
        lower: Proven lower bound on it, within about 1e-90 of :attr:`upper`.
        upper: Proven upper bound.
        flaw: Why the point is outside the domain; empty if it is inside. The bounds mean nothing outside.
    """

    lower: Fraction
    upper: Fraction
    flaw: str = ""


def exact_dual(loss: nn.Module, targets: Tensor, dual_point: NDArray[np.float64]) -> ExactDual:
    """Evaluate the dual objective of a torch loss at a finite ``dual_point`` of shape ``(num_samples, out_features)``.

    Raises:
        UnsupportedLossError: If the loss is not in the table.
    """
    point = _rational(dual_point)
    mean = getattr(loss, "reduction", "sum") == "mean"
    count = Fraction(dual_point.size if mean else 1)
    if isinstance(loss, nn.CrossEntropyLoss):
        rows, number = _class_rows(loss, targets, dual_point.shape[1])
        if any(sum(row) for row in point):
            return _outside("a row of the dual point does not sum to zero")
        return _entropies(_rational(rows), point, Fraction(number) if mean else Fraction(1))
    numbers = targets.detach().cpu().double().numpy().reshape(dual_point.shape)
    if isinstance(loss, nn.BCEWithLogitsLoss):
        weight = 1.0 if loss.pos_weight is None else loss.pos_weight.detach().cpu().double().numpy()
        pairs = np.stack([numbers * weight, 1.0 - numbers], axis=-1).reshape(-1, 2)
        flat = [[entry, -entry] for row in point for entry in row]
        return _entropies(_rational(pairs), flat, count)
    if isinstance(loss, HalfSquaredLoss):
        return _huber(_rational(numbers), point, Fraction(1), Fraction(1), None)
    if isinstance(loss, nn.MSELoss):
        return _huber(_rational(numbers), point, count, Fraction(1, 2), None)
    if isinstance(loss, nn.L1Loss):
        return _huber(_rational(numbers), point, count, Fraction(0), Fraction(1))
    if isinstance(loss, nn.HuberLoss):
        return _huber(_rational(numbers), point, count, Fraction(1), Fraction(loss.delta))
    if isinstance(loss, nn.SmoothL1Loss):
        return _huber(_rational(numbers), point, count, Fraction(loss.beta), Fraction(1))
    raise UnsupportedLossError(f"The loss is of class {type(loss).__name__}; there is no second formula for its conjugate.")


def _outside(flaw: str) -> ExactDual:
    return ExactDual(lower=Fraction(0), upper=Fraction(0), flaw=flaw)


def _rational(matrix: NDArray[np.float64]) -> Rows:
    return [[Fraction(entry) for entry in row] for row in matrix.tolist()]


def _huber(targets: Rows, point: Rows, count: Fraction, width: Fraction, slope: Fraction | None) -> ExactDual:
    r"""``<Lam, Y> - N w / 2 |Lam|^2`` where ``N |Lam| <= slope``."""
    total = Fraction(0)
    for dual_row, row in zip(point, targets, strict=True):
        for dual, target in zip(dual_row, row, strict=True):
            if slope is not None and abs(dual) * count > slope:
                return _outside(f"an entry of the dual point, {float(dual)!r}, is larger than {float(slope / count)!r}")
            total += dual * target - count * width / 2 * dual * dual
    return ExactDual(lower=total, upper=total)


def _entropies(targets: Rows, point: Rows, count: Fraction) -> ExactDual:
    r"""``1/N sum_i m_i H(U_i / m_i)`` with ``U = T - N Lam >= 0``, one row a sample (or logit)."""
    with localcontext(Context(prec=_DIGITS)):
        total, size = Decimal(0), Decimal(0)
        for dual_row, row in zip(point, targets, strict=True):
            masses = [target - count * dual for dual, target in zip(dual_row, row, strict=True)]
            if min(masses) < 0:
                return _outside(f"a class mass is negative: {float(min(masses))!r}")
            term, scale = _row_entropy(masses)
            total, size = total + term, size + scale
        value, error = Fraction(total) / count, Fraction(size * _ERROR) / count
    return ExactDual(lower=max(value - error, Fraction(0)), upper=value + error)  # entropies are never negative


def _row_entropy(masses: Sequence[Fraction]) -> tuple[Decimal, Decimal]:
    """``-sum U log(U / m)``, and what its error is relative to."""
    total = sum(masses, Fraction(0))
    value, size = Decimal(0), Decimal(0)
    for mass in masses:
        if mass > 0:
            ratio = mass / total
            term = -_decimal(mass) * (_decimal(ratio)).ln()
            value, size = value + term, size + abs(term) + _decimal(mass)
    return value, size


def _decimal(number: Fraction) -> Decimal:
    return Decimal(number.numerator) / Decimal(number.denominator)


def _class_rows(loss: nn.CrossEntropyLoss, targets: Tensor, num_classes: int) -> tuple[NDArray[np.float64], float]:
    """Class targets, smoothing and weights included, and the number that torch averages over."""
    weight = np.ones(num_classes) if loss.weight is None else loss.weight.detach().cpu().double().numpy()
    given = targets.detach().cpu().numpy() if not targets.is_floating_point() else targets.detach().cpu().double().numpy()
    rows: NDArray[np.float64] = given if given.ndim == 2 else np.eye(num_classes)[given]
    number = float(len(rows)) if given.ndim == 2 else math.fsum(weight[given].tolist())
    if loss.label_smoothing:
        rows = rows * (1.0 - loss.label_smoothing) + loss.label_smoothing / num_classes
    return rows * weight, number
