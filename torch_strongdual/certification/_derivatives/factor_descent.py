"""Newton's method on the factors of a network, to machine precision: an active-set method for the kinks of its hidden units."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_strongdual.certification._derivatives.factor_point import FactorPoint
from torch_strongdual.certification._derivatives.factor_problem import FactorDerivatives, FactorProblem
from torch_strongdual.certification._derivatives.kink_multipliers import kink_multipliers

__all__ = ["StationaryPoint", "descended"]

_STEPS = 400
_SHARE = 0.1  # of a multiplier outside its range: the derivative along the kinks has to be below it before a kink is left
_FLAT = 1e-9  # curvatures below this part of the largest are taken as this
_HALVINGS = 12
_CROSSINGS = 64  # of kinks along a direction, at which the objective is evaluated
_ROUNDING = 1e-14
_DEPENDENT = 1e-9
_ON_LINE = 1e-13  # heights and their rates, relative, that are rounding


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StationaryPoint:
    """Where Newton's method ended.

    Args:
        point: The factors.
        derivatives: Of the objective there.
        basis: Orthonormal, of the directions that stay on the kinks, shape ``(number of factors, directions)``.
        residual: Largest derivative along the basis, relative to that of the penalty.
        multipliers: Of the kinks, in units of the jump of the derivative: between 0 and 1 at a minimum, NaN where there is no
            kink, shape ``(number, num_normals)``.
    """

    point: FactorPoint
    derivatives: FactorDerivatives
    basis: Tensor
    residual: float
    multipliers: Tensor

    @property
    def slope(self) -> Tensor:
        """Derivative along the basis."""
        return self.basis.T @ self.derivatives.gradient

    @property
    def curvature(self) -> Tensor:
        """Second derivative along the basis."""
        return self.basis.T @ self.derivatives.hessian @ self.basis


def descended(problem: FactorProblem, start: FactorPoint, *, tolerance: float) -> StationaryPoint:
    """Lower the objective until its derivative, relative to that of the penalty, is below ``tolerance``, or no step helps.

    Args:
        problem: The objective.
        start: Where from.
        tolerance: At which to stop.
    """
    here = _assessed(problem, _on_kinks(problem, start))
    for _ in range(_STEPS):
        released = _released(here)
        if released is None and here.residual <= tolerance:
            break
        moved = _moved(problem, here) if released is None else _assessed(problem, released)
        if moved is None:
            break
        here = moved
    return here


def _assessed(problem: FactorProblem, point: FactorPoint) -> StationaryPoint:
    derivatives = problem.derivatives(point)
    basis, multipliers = _kink_basis(problem, point, derivatives)
    along = basis.T @ derivatives.gradient
    size = problem.limit * max(float(point.first.abs().max()), float(point.last.abs().max()), sys.float_info.min)
    residual = float(along.abs().max()) / size if len(along) else 0.0
    return StationaryPoint(point=point, derivatives=derivatives, basis=basis, residual=residual, multipliers=multipliers)


def _kink_basis(problem: FactorProblem, point: FactorPoint, derivatives: FactorDerivatives) -> tuple[Tensor, Tensor]:
    """Directions that stay on the kinks, and the multipliers of these."""
    number, rank = point.first.shape
    multipliers = torch.full_like(point.sides, torch.nan)
    blocks = []
    for j in range(number):
        held = point.sides[j] == 0.0
        if not held.any():
            blocks.append(torch.eye(rank, dtype=torch.float64))
            continue
        normals = problem.data.normals[held]
        _, singular, right = torch.linalg.svd(normals)
        independent = int((singular > _DEPENDENT).sum())
        blocks.append(right[independent:].T)
        pull = -derivatives.gradient[j * rank : (j + 1) * rank]
        multipliers[j, held] = kink_multipliers(normals, derivatives.jumps[j, held], pull, independent)
    others = len(derivatives.gradient) - number * rank
    basis: Tensor = torch.block_diag(*blocks, torch.eye(others, dtype=torch.float64))  # type: ignore[no-untyped-call]
    return basis, multipliers


def _released(here: StationaryPoint) -> FactorPoint | None:
    """Off the kinks that hold nothing, one a branch; ``None`` if there are none, or the derivative is not small yet."""
    multipliers = here.multipliers
    outside = torch.nan_to_num(torch.maximum(-multipliers, multipliers - 1.0), nan=-1.0) * here.derivatives.jumps.abs()
    largest = float(outside.max()) if outside.numel() else 0.0
    along = here.slope.abs().max() if here.basis.shape[1] else 0.0
    if largest <= 0.0 or float(along) > _SHARE * largest:
        return None
    worst = outside.max(dim=1)
    rows = torch.nonzero(worst.values > _SHARE * largest)[:, 0]
    sides, lines = here.point.sides.clone(), worst.indices[rows]
    sides[rows, lines] = (multipliers[rows, lines] - 0.5).sign()
    return dataclasses.replace(here.point, sides=sides)


def _moved(problem: FactorProblem, here: StationaryPoint) -> StationaryPoint | None:
    """After the best step along Newton's direction; ``None`` if none is better."""
    path = _Path.of(problem, here.point, _newton_direction(here))
    best, best_value = None, here.derivatives.value - _ROUNDING * abs(here.derivatives.value)
    for time, crossed in path.stops():
        moved = path.at(time)
        value = problem.value(moved)
        if value < best_value:
            best, best_value = (moved, crossed), value
    if best is None:  # the objective no longer tells
        last = _assessed(problem, path.at(1.0))
        return last if last.residual < 0.5 * here.residual else None
    moved, crossed = best
    assessed = _assessed(problem, moved)
    if crossed is None or assessed.derivatives.jumps[crossed] <= 0.0:
        return assessed
    sides = moved.sides.clone()
    sides[crossed] = 0.0  # leaving the kink costs to either side
    held = _on_kinks(problem, dataclasses.replace(moved, sides=sides))
    branch = held.first[crossed[0]]
    near = (problem.data.normals @ branch).abs() <= _ON_LINE * torch.linalg.vector_norm(branch)
    sides[crossed[0], near & (assessed.derivatives.jumps[crossed[0]] > 0.0)] = (
        0.0  # and so does leaving others through that line
    )
    return _assessed(problem, dataclasses.replace(held, sides=sides))


def _newton_direction(here: StationaryPoint) -> Tensor:
    """Downhill also where the curvature is negative."""
    if here.basis.shape[1] == 0:
        return torch.zeros_like(here.derivatives.gradient)
    values, vectors = torch.linalg.eigh(here.curvature)
    sizes, largest = values.abs(), float(values.abs().max())
    steps = (vectors.T @ here.slope) / sizes.clamp(min=_FLAT * largest)
    direction: Tensor = -here.basis @ (vectors @ torch.where(sizes > _ROUNDING * largest, steps, 0.0))
    return direction


def _on_kinks(problem: FactorProblem, point: FactorPoint) -> FactorPoint:
    """With first layers projected onto the kinks that hold them."""
    first = point.first.clone()
    for j in torch.nonzero((point.sides == 0.0).any(dim=1))[:, 0].tolist():
        normals = problem.data.normals[point.sides[j] == 0.0]
        first[j] -= torch.linalg.lstsq(normals, normals @ first[j][:, None]).solution[:, 0]
    return dataclasses.replace(point, first=first)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Path:
    """A straight line through a point, and where its branches cross kinks.

    Args:
        start: The point.
        direction: Flat.
        heights: Distances of the first layers from the kinks, shape (number, num_normals).
        rates: Of their change.
    """

    start: FactorPoint
    direction: Tensor
    heights: Tensor
    rates: Tensor

    @classmethod
    def of(cls, problem: FactorProblem, start: FactorPoint, direction: Tensor) -> _Path:
        first, _, _ = start.split(direction)
        normals = problem.data.normals.T
        return cls(start=start, direction=direction, heights=start.first @ normals, rates=first @ normals)

    @property
    def _still(self) -> Tensor:
        """Kinks that a branch is on, to rounding, and along which it moves: the sign of what is left says nothing."""
        sizes = torch.linalg.vector_norm(self.start.first, dim=1, keepdim=True)
        rates = torch.linalg.vector_norm(self.start.split(self.direction)[0], dim=1, keepdim=True)
        still: Tensor = (self.heights.abs() <= _ON_LINE * sizes) & (self.rates.abs() <= _ON_LINE * rates)
        return still

    def at(self, time: float) -> FactorPoint:
        reached = self.heights + time * self.rates
        stays = (self.start.sides == 0.0) | (reached == 0.0) | self._still
        return self.start.at(self.start.flat() + time * self.direction, torch.where(stays, self.start.sides, reached.sign()))

    def stops(self) -> list[tuple[float, tuple[int, int] | None]]:
        """Times at which to evaluate the objective, with the branch and the normal whose kink is reached then, if one is."""
        is_crossing = (self.start.sides * self.rates < 0.0) & ~self._still
        times = torch.where(is_crossing, (-self.heights / self.rates).clamp(min=0.0), torch.inf).flatten()
        first = times.argsort()[:_CROSSINGS]
        width = max(self.heights.shape[1], 1)
        crossings = [(float(times[i]), divmod(int(i), width)) for i in first if times[i] <= 1.0]
        return [*((0.5**k, None) for k in range(_HALVINGS)), *crossings]
