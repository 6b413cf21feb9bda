"""From a nearly optimal network to a stationary point in machine precision, with as few branches as it needs."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from torch_strongdual.certification._derivatives.factor_descent import StationaryPoint, descended
from torch_strongdual.certification._derivatives.factor_groups import compressed
from torch_strongdual.certification._derivatives.factor_point import FactorPoint
from torch_strongdual.certification._derivatives.factor_problem import FactorProblem
from torch_strongdual.errors import InvalidInputError, SolverError

__all__ = ["polished_factors"]

_TOLERANCE = 1e-12
_ACCEPTED = 1e-9  # what a nearly singular problem may end with; its derivative is refused elsewhere
_ON_KINK = 1e-6
_SPREADS = (3e-2, 1e-2, 1e-3, 0.0)  # of branches that are taken for one, in turn
_DEAD = 1e-9
_IDLE = 1e-9  # multipliers, in units of what a kink can hold
_ROUNDS = 8
_RISE = 1e-12


def polished_factors(problem: FactorProblem, start: FactorPoint) -> StationaryPoint:
    """A stationary point near ``start`` with no larger an objective.

    Branches whose layers point almost the same way are taken for one: solvers leave several where the optimum has one.

    Args:
        problem: The objective.
        start: A nearly optimal network; sides of kinks are chosen here.

    Raises:
        SolverError: If Newton's method does not get there.
        InvalidInputError: If all branches vanish.
    """
    placed = _with_sides(problem, start.balanced())
    value = problem.value(placed)
    tried = []
    for spread in _SPREADS:
        found = _settled(problem, _merged(compressed(problem.data, placed), spread))
        rise = (found.derivatives.value - value) / abs(value)
        if found.residual <= _ACCEPTED and rise <= _RISE:
            return found
        tried.append(f"{found.residual:.1g} with the objective {rise:+.1g} of itself higher")
    raise SolverError(
        "The network could not be moved to a stationary point with no larger an objective. The derivative reached, relative to "
        f"that of the penalty, is {'; '.join(tried)}; expected {_ACCEPTED:g}, and no higher. Pass a network closer to the "
        "optimum: a smaller `rtol`, or more time.",
        solver="Newton's method on the factors",
        solver_status=tried[-1],
    )


def _settled(problem: FactorProblem, start: FactorPoint) -> StationaryPoint:
    """Descend; branches that vanish go, and those of equal pattern that are not needed; again, until none is."""
    point, dead = start, _DEAD * start.magnitudes().max()
    for _ in range(_ROUNDS):
        found = descended(problem, _with_sides(problem, point), tolerance=_TOLERANCE)
        alive = _loosened(found).kept(found.point.magnitudes() > dead)
        if alive.number == 0:
            raise InvalidInputError(
                "All branches vanish at the optimum: `path_decay` is above what max_path_decay returns; expected less."
            )
        point = compressed(problem.data, alive)
        if point.number == found.point.number and bool((alive.sides == found.point.sides).all()):
            break
    return found


def _loosened(found: StationaryPoint) -> FactorPoint:
    """Off the kinks that hold with no force: branches of one pattern that can turn into each other need not touch these."""
    idle = torch.minimum(found.multipliers.abs(), (found.multipliers - 1.0).abs()) <= _IDLE
    sides = torch.where(idle, (found.multipliers - 0.5).sign(), found.point.sides)
    return dataclasses.replace(found.point, sides=sides)


def _with_sides(problem: FactorProblem, point: FactorPoint) -> FactorPoint:
    """On the sides that the first layers are on, or on the kink where they almost are and leaving it would cost."""
    heights = point.first @ problem.data.normals.T
    sides = torch.where(heights > 0.0, 1.0, -torch.ones_like(heights))
    placed = dataclasses.replace(point, sides=sides)
    near = heights.abs() <= _ON_KINK * torch.linalg.vector_norm(point.first, dim=1, keepdim=True)
    return dataclasses.replace(placed, sides=torch.where(near & (problem.jumps(placed) > 0.0), 0.0, sides))


def _merged(point: FactorPoint, spread: float) -> FactorPoint:
    """One branch for those of equal gates with layers at most ``spread`` apart, when of norm one; the largest leads."""
    sizes = point.magnitudes()
    first, last = _units(point.first), _units(point.last)
    left = sizes.argsort(descending=True).tolist()
    leaders, firsts, lasts = [], [], []
    while left:
        leader = left[0]
        distance = torch.maximum(
            torch.linalg.vector_norm(first[left] - first[leader], dim=1),
            torch.linalg.vector_norm(last[left] - last[leader], dim=1),
        )
        joins = (distance <= spread) & (point.gates[left] == point.gates[leader])
        group = [index for index, joined in zip(left, joins.tolist(), strict=True) if joined]
        left = [index for index, joined in zip(left, joins.tolist(), strict=True) if not joined]
        scale = sizes[group].sum().sqrt()
        leaders.append(leader)
        firsts.append(scale * _units(sizes[group] @ first[group]))
        lasts.append(scale * _units(sizes[group] @ last[group]))
    return dataclasses.replace(point.kept(torch.tensor(leaders)), first=torch.stack(firsts), last=torch.stack(lasts))


def _units(vectors: Tensor) -> Tensor:
    units: Tensor = vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return units
