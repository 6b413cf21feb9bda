"""Slow references for losses and their dual objectives, straight from the definitions.

Each reference gives the loss at 60 digits, the dual objective ``D(Lam) = inf over F of loss(F) + <Lam, F>`` at 60 digits with
an exact decision (in rational arithmetic) whether ``Lam`` is in the domain, and the dual objective by numerical minimisation,
which knows no conjugate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import cvxpy as cp
import numpy as np
from mpmath import mp, mpf  # type: ignore[import-untyped]
from numpy.typing import NDArray

Array = NDArray[np.float64]

mp.dps = 60


class LossReference(Protocol):
    """What the contract tests compare with."""

    def value(self, outputs: Array) -> mpf: ...

    def dual(self, dual_point: Array) -> mpf | None: ...

    def dual_by_minimisation(self, dual_point: Array) -> float: ...


def to_mpf(number: Fraction) -> mpf:
    return mpf(number.numerator) / mpf(number.denominator)


def are_zero_sums(matrix: Array, axis: int) -> bool:
    """Whether rows (1) or columns (0) sum to zero in rational arithmetic."""
    lines = matrix if axis == 1 else matrix.T
    return all(sum(map(Fraction, line.tolist())) == 0 for line in lines)


def is_within(left: Array, right: Array, distances: Array) -> bool:
    """Whether rows are within their Euclidean distances, in rational arithmetic."""
    for left_row, right_row, distance in zip(left.tolist(), right.tolist(), distances.tolist(), strict=True):
        square = sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(left_row, right_row, strict=True))
        if square > Fraction(distance) ** 2:
            return False
    return True


def _minimum(loss: cp.Expression, outputs: cp.Variable, dual_point: Array) -> float:
    problem = cp.Problem(cp.Minimize(loss + cp.sum(cp.multiply(dual_point, outputs))))
    return float(problem.solve(solver=cp.CLARABEL))


@dataclass(frozen=True)
class HuberReference:
    """``1/N sum psi(F - Y)``: quadratic of curvature ``1/width`` up to slope ``slope_bound``."""

    targets: Array
    normalizer: float
    width: float
    slope_bound: float

    def value(self, outputs: Array) -> mpf:
        total = mpf(0)
        width, slope = mpf(self.width), mpf(self.slope_bound)
        for output, target in zip(outputs.ravel().tolist(), self.targets.ravel().tolist(), strict=True):
            distance = abs(mpf(output) - mpf(target))
            if self.slope_bound == math.inf or distance < slope * width:
                total += distance**2 / (2 * width)
            else:
                total += slope * (distance - slope * width / 2)
        return total / mpf(self.normalizer)

    def dual(self, dual_point: Array) -> mpf | None:
        total = Fraction(0)
        for entry, target in zip(dual_point.ravel().tolist(), self.targets.ravel().tolist(), strict=True):
            dual = Fraction(entry)
            if self.slope_bound < math.inf and abs(dual) * Fraction(self.normalizer) > Fraction(self.slope_bound):
                return None
            total += dual * Fraction(target) - dual * dual * Fraction(self.normalizer) * Fraction(self.width) / 2
        return to_mpf(total)

    def dual_by_minimisation(self, dual_point: Array) -> float:
        outputs = cp.Variable(self.targets.shape)
        error = outputs - self.targets
        if self.slope_bound == math.inf:
            loss = cp.sum_squares(error) / (2 * self.width)
        elif self.width == 0:
            loss = self.slope_bound * cp.sum(cp.abs(error))
        else:
            # cvxpy's huber(r, M) is r^2 up to M and 2 M |r| - M^2 beyond.
            loss = cp.sum(cp.huber(error, self.slope_bound * self.width)) / (2 * self.width)
        return _minimum(loss / self.normalizer, outputs, dual_point)


def _entropy(masses: list[Fraction], total: Fraction) -> mpf:
    """``-sum U log(U / m)``; the log of a ratio next to 1 by what is missing, which 60 digits of the ratio would not show."""
    terms = []
    for mass in masses:
        if 0 < 2 * mass < total:
            terms.append(-to_mpf(mass) * mp.log(to_mpf(mass) / to_mpf(total)))
        elif mass > 0:
            terms.append(-to_mpf(mass) * mp.log1p(-to_mpf((total - mass) / total)))
    return mp.fsum(terms)


@dataclass(frozen=True)
class LogisticReference:
    """``1/N sum a log(1 + exp(-F)) + b log(1 + exp(F))``."""

    positive: Array
    negative: Array
    normalizer: float

    def value(self, outputs: Array) -> mpf:
        total = mpf(0)
        entries = zip(outputs.ravel().tolist(), self.positive.ravel().tolist(), self.negative.ravel().tolist(), strict=True)
        for output, positive, negative in entries:
            total += mpf(positive) * mp.log1p(mp.exp(-mpf(output))) + mpf(negative) * mp.log1p(mp.exp(mpf(output)))
        return total / mpf(self.normalizer)

    def dual(self, dual_point: Array) -> mpf | None:
        total = mpf(0)
        entries = zip(dual_point.ravel().tolist(), self.positive.ravel().tolist(), self.negative.ravel().tolist(), strict=True)
        for entry, positive, negative in entries:
            scaled = Fraction(self.normalizer) * Fraction(entry)
            masses = [Fraction(positive) - scaled, Fraction(negative) + scaled]
            if min(masses) < 0:
                return None
            total += _entropy(masses, sum(masses, Fraction(0)))
        return total / mpf(self.normalizer)

    def dual_by_minimisation(self, dual_point: Array) -> float:
        outputs = cp.Variable(self.positive.shape)
        terms = cp.multiply(self.positive, cp.logistic(-outputs)) + cp.multiply(self.negative, cp.logistic(outputs))
        return _minimum(cp.sum(terms) / self.normalizer, outputs, dual_point)


@dataclass(frozen=True)
class SoftmaxReference:
    """``1/N sum_i sum_k T_ik (log sum_j exp(F_ij) - F_ik)``."""

    targets: Array
    normalizer: float

    def value(self, outputs: Array) -> mpf:
        total = mpf(0)
        for row, targets in zip(outputs.tolist(), self.targets.tolist(), strict=True):
            for label, target in enumerate(targets):
                others = [mp.exp(mpf(other) - mpf(row[label])) for k, other in enumerate(row) if k != label]
                total += mpf(target) * mp.log1p(mp.fsum(others))
        return total / mpf(self.normalizer)

    def dual(self, dual_point: Array) -> mpf | None:
        if not are_zero_sums(dual_point, axis=1):
            return None
        total = mpf(0)
        for row, targets in zip(dual_point.tolist(), self.targets.tolist(), strict=True):
            masses = [Fraction(t) - Fraction(self.normalizer) * Fraction(entry) for entry, t in zip(row, targets, strict=True)]
            if min(masses) < 0:
                return None
            total += _entropy(masses, sum(masses, Fraction(0)))
        return total / mpf(self.normalizer)

    def dual_by_minimisation(self, dual_point: Array) -> float:
        outputs = cp.Variable(self.targets.shape)
        mass = self.targets.sum(axis=1)
        terms = cp.multiply(mass, cp.log_sum_exp(outputs, axis=1)) - cp.sum(cp.multiply(self.targets, outputs), axis=1)
        # The loss does not change along (1, ..., 1), nor does <Lam, F> in the domain: fix what is free.
        free = cp.sum(outputs, axis=1)
        problem = cp.Problem(
            cp.Minimize(cp.sum(terms) / self.normalizer + cp.sum(cp.multiply(dual_point, outputs))), [free == 0]
        )
        return float(problem.solve(solver=cp.CLARABEL))
