"""Derivative of a stationary network in the strength of the penalty and in the targets, by the implicit function theorem."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from torch_strongdual.certification._derivatives.factor_descent import StationaryPoint
from torch_strongdual.certification._derivatives.factor_groups import groups_of_equal_pattern
from torch_strongdual.certification._derivatives.factor_point import FactorPoint
from torch_strongdual.certification._derivatives.factor_problem import FactorProblem
from torch_strongdual.certification._restricted.scaled_loss import ScaledLoss
from torch_strongdual.errors import NotDifferentiableError

__all__ = ["ImplicitFactors"]

_SINGULAR = 1e-9  # of the largest curvature
_WEAK = 1e-7  # multipliers, in units of the jump, this close to where a kink lets go
_TOUCHED = 1e-9  # distance from a kink that holds nothing, relative
_DEPENDENT = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImplicitFactors:
    """The factors as a function of the strength and of the tensors of the loss.

    Args:
        problem: The objective.
        point: The stationary point.
        directions: In which it may move, shape ``(number of factors, directions)``: on the kinks, and without turning branches
            of equal pattern into each other, which changes nothing.
        root: Cholesky factor of the second derivative along these.
    """

    problem: FactorProblem
    point: FactorPoint
    directions: Tensor
    root: Tensor

    @classmethod
    def of(cls, problem: FactorProblem, found: StationaryPoint) -> ImplicitFactors:
        """Check that the derivative exists.

        Raises:
            NotDifferentiableError: If it does not; the message says why.
        """
        _check_kinks(problem, found)
        _check_loss(problem, found.point)
        still = found.basis.T @ _idle_directions(problem, found.point)
        left, singular, _ = torch.linalg.svd(still)
        turns = int((singular > _DEPENDENT * singular.max()).sum()) if singular.numel() else 0
        directions = found.basis @ left[:, turns:]
        curvature = directions.T @ found.derivatives.hessian @ directions
        values = torch.linalg.eigvalsh(curvature)
        least = float(values[0] / values[-1]) if len(values) else 1.0
        if least <= _SINGULAR:
            raise NotDifferentiableError(
                f"The smallest curvature of the objective at the optimum is {least:.1g} of the largest; expected more than "
                f"{_SINGULAR:g}: the optimal network is not unique, not finite, or about to change its branches. "
                "Move `path_decay` or the targets a little."
            )
        root = torch.linalg.cholesky(curvature)
        return cls(problem=problem, point=found.point, directions=directions, root=root)

    def factors(self, limit: Tensor, loss: ScaledLoss) -> tuple[Tensor, Tensor, Tensor]:
        """First layers, output layers and bias; differentiable in ``limit`` and in the tensors of ``loss``.

        Args:
            limit: The strength, with the value that the problem has.
            loss: The loss of the problem.
        """
        flat: Tensor = _Implicit.apply(self, limit, *loss.parameters())  # type: ignore[no-untyped-call]
        return self.point.split(flat)

    def pulled_back(self, gradient: Tensor, limit: Tensor, parameters: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
        """Gradient in ``limit`` and in the tensors of the loss, from that in the factors."""
        adjoint = -self.directions @ torch.cholesky_solve((self.directions.T @ gradient)[:, None], self.root)[:, 0]
        weights = self.point.first.numel() + self.point.last.numel()
        pushed = self.problem.jacobian(self.point) @ adjoint
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (limit, *parameters)]
            loss = dataclasses.replace(self.problem.loss, targets=leaves[1], last=leaves[2] if len(leaves) > 2 else None)
            along_penalty = leaves[0] * (adjoint[:weights] @ self.point.flat()[:weights])
            along_loss = (loss.slope(self.problem.outputs(self.point)) * pushed).sum()
            return torch.autograd.grad(along_penalty + along_loss, leaves, allow_unused=True)


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, implicit: ImplicitFactors, *tensors: Tensor) -> Tensor:
        ctx.implicit = implicit
        ctx.save_for_backward(*tensors)
        return implicit.point.flat()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        limit, *parameters = ctx.saved_tensors
        return (None, *ctx.implicit.pulled_back(gradients[0], limit, tuple(parameters)))


def _idle_directions(problem: FactorProblem, point: FactorPoint) -> Tensor:  # shape: (number of factors, directions)
    """Along which nothing changes: turning two branches of equal slopes and kinks into each other; raising all logits."""
    directions = []
    for group in groups_of_equal_pattern(problem.data, point):
        for j, k in combinations(group, 2):
            first, last = torch.zeros_like(point.first), torch.zeros_like(point.last)
            first[j], first[k] = point.first[k], -point.first[j]
            last[j], last[k] = point.last[k], -point.last[j]
            directions.append(torch.cat([first.flatten(), last.flatten(), torch.zeros_like(point.bias)]))
    if problem.loss.kind == "softmax" and len(point.bias):
        directions.append(torch.cat([torch.zeros(len(point.flat()) - len(point.bias)), torch.ones_like(point.bias)]))
    return torch.stack(directions, dim=1) if directions else torch.zeros(len(point.flat()), 0, dtype=torch.float64)


def _check_kinks(problem: FactorProblem, found: StationaryPoint) -> None:
    point, multipliers = found.point, found.multipliers[found.point.sides == 0.0].nan_to_num()
    weakest = float(torch.minimum(multipliers, 1.0 - multipliers).min()) if len(multipliers) else 1.0
    if weakest <= _WEAK:
        raise NotDifferentiableError(
            f"A kink holds an optimal first layer with a multiplier of {weakest:.1g} of what it can hold; expected more than "
            f"{_WEAK:g}: to one side the branch leaves the kink, to the other it stays, and the derivatives differ. "
            "Move `path_decay` or the targets a little."
        )
    heights = (point.first @ problem.data.normals.T).abs()
    close = heights <= _TOUCHED * torch.linalg.vector_norm(point.first, dim=1, keepdim=True)
    bends = problem.data.jumps(torch.ones(point.number, len(problem.data.rows), dtype=torch.float64), point.gates) > 0.0
    if bool((close & bends & (point.sides != 0.0)).any()):
        raise NotDifferentiableError(
            "An optimal first layer touches the kink of a sample that does not hold it: the derivatives to both sides differ. "
            "Move `path_decay` or the targets a little."
        )


def _check_loss(problem: FactorProblem, point: FactorPoint) -> None:
    loss = problem.loss
    if loss.kind != "huber" or loss.last is None:
        return
    distance = ((problem.outputs(point) - loss.targets).abs() / loss.last - 1.0).abs()
    if float(distance.min()) <= _WEAK:
        raise NotDifferentiableError(
            f"A residual lies on the kink of the Huber loss, to {float(distance.min()):.1g} of its size, where the loss has no "
            "second derivative. Move `path_decay` or the targets a little."
        )
