"""The absolute loss over a finite set of atoms: duality gaps, and Newton steps on the kinks where its optimum lies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_strongdual.certification._restricted.program_data import ProgramData

__all__ = ["KinkPoint", "KinkProgram"]

_STEPS = 8
_LARGEST = 1500  # unknowns and multipliers of a Newton step
_SMALL = 1e-3  # size of a coefficient that a step brings into use, of what it will be
_DEPENDENT = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KinkPoint:
    """Coefficients with a dual point, and how far apart they are.

    Args:
        coefficients: Shape ``(num_rows, out_features)``.
        multipliers: In the domain, balanced if there is a bias, feasible for all atoms, shape ``(num_samples, out_features)``.
        relative_gap: Of the primal value.
    """

    coefficients: Tensor
    multipliers: Tensor
    relative_gap: float

    def or_better(self, other: KinkPoint) -> KinkPoint:
        """The one with the smaller gap."""
        return other if other.relative_gap < self.relative_gap else self


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KinkProgram:
    """Minimise ``sum |A V - Y| + sum_j weights_j ||V_j||``.

    Args:
        atoms: A, unit columns, the last one constant if there is a bias, shape ``(num_samples, num_rows)``.
        weights: Zero for the bias, shape ``(num_rows,)``.
        targets: Y, shape ``(num_samples, out_features)``.
        output_bias: Whether there is a bias.
    """

    atoms: Tensor
    weights: Tensor
    targets: Tensor
    output_bias: bool

    @classmethod
    def of(cls, data: ProgramData) -> KinkProgram:
        """The program of such data."""
        atoms, weights, bias = data.atoms, data.weights, data.output_bias
        if bias:
            atoms = torch.cat([atoms, atoms.new_full((len(atoms), 1), len(atoms) ** -0.5)], dim=1)
            weights = torch.cat([weights, weights.new_zeros(1)])
        return cls(atoms=atoms, weights=weights, targets=data.targets, output_bias=bias)

    def in_domain(self, multipliers: Tensor) -> Tensor:
        """The nearest in the unit box, balanced if there is a bias."""
        inside = multipliers.clamp(-1.0, 1.0)
        if not self.output_bias:
            return inside
        for _ in range(2):  # once more for what rounding left
            inside = inside - inside.mean(dim=0)
        return inside / inside.abs().amax(dim=0).clamp(min=1.0)

    def point(self, coefficients: Tensor, multipliers: Tensor) -> KinkPoint:
        """Make the multipliers feasible, and measure the gap.

        Args:
            coefficients: V.
            multipliers: Near a dual point.
        """
        feasible = self.in_domain(multipliers)
        used = self.weights > 0.0
        if used.any():
            steepest = torch.linalg.vector_norm(self.atoms[:, used].T @ feasible, dim=1) / self.weights[used]
            feasible = feasible / steepest.max().clamp(min=1.0)
        primal = float((self.atoms @ coefficients - self.targets).abs().sum())
        primal += float(self.weights @ torch.linalg.vector_norm(coefficients, dim=1))
        gap = primal - float((feasible * self.targets).sum())
        relative = gap / primal if primal > 0.0 else 0.0
        return KinkPoint(
            coefficients=coefficients, multipliers=feasible, relative_gap=relative if math.isfinite(relative) else math.inf
        )

    def polished(self, coefficients: Tensor, multipliers: Tensor, penalty: float, *, rtol: float) -> KinkPoint:
        """The best of a few semismooth Newton steps on the optimality conditions.

        Args:
            coefficients: V.
            multipliers: Near a dual point.
            penalty: What coefficients are multiplied by to be compared with multipliers.
            rtol: Gap at which to stop.
        """
        best = self.point(coefficients, multipliers)
        for _ in range(_STEPS):
            moved = self._newton_step(coefficients, multipliers, penalty)
            if moved is None:
                break
            coefficients, multipliers = moved
            best = best.or_better(self.point(coefficients, multipliers))
            if best.relative_gap <= rtol:
                break
        return best

    def _newton_step(self, coefficients: Tensor, multipliers: Tensor, penalty: float) -> tuple[Tensor, Tensor] | None:
        """Solve for the atoms in use and the errors that are zero, as both look from here; ``None`` if there are too many."""
        pressure = penalty * (self.atoms @ coefficients - self.targets) - multipliers
        is_zero = pressure.abs() <= 1.0
        signs = torch.where(is_zero, 0.0, pressure.sign())
        pull = penalty * coefficients + self.atoms.T @ multipliers
        is_used = (torch.linalg.vector_norm(pull, dim=1) > self.weights) | (self.weights == 0.0)
        number, outputs = int(is_used.sum()), self.targets.shape[1]
        samples, columns = torch.nonzero(is_zero, as_tuple=True)
        if number * outputs + len(samples) > _LARGEST or number == 0:
            return None
        atoms, weights = self.atoms[:, is_used], self.weights[is_used]
        rows = coefficients[is_used]
        rows = torch.where((rows == 0.0).all(dim=1, keepdim=True), _SMALL / penalty * pull[is_used], rows)
        fixed = rows.new_zeros(len(samples), number, outputs)
        fixed[torch.arange(len(samples), device=rows.device), :, columns] = atoms[samples]
        fixed = fixed.flatten(1)
        curvature, slope = _bent(rows, weights)
        slope = atoms.T @ signs + slope
        missing = self.targets[samples, columns] - (fixed @ rows.flatten())
        solution = _solved(curvature, fixed, -slope.flatten(), missing)
        if not bool(torch.isfinite(solution).all()):
            return None
        moved, forces = torch.zeros_like(coefficients), -signs
        moved[is_used] = rows + solution[: number * outputs].reshape(rows.shape)
        forces[samples, columns] = solution[number * outputs :]
        return moved, forces


def _bent(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Second and first derivatives of ``sum_j weights_j ||rows_j||``."""
    number, outputs = rows.shape
    lengths = torch.linalg.vector_norm(rows, dim=1).clamp(min=1e-300)
    units = rows / lengths[:, None]
    identity = torch.eye(outputs, dtype=rows.dtype, device=rows.device)
    blocks = (weights / lengths)[:, None, None] * (identity - units[:, :, None] * units[:, None, :])
    curvature = rows.new_zeros(number, outputs, number, outputs)
    each = torch.arange(number, device=rows.device)
    curvature[each, :, each, :] = blocks
    return curvature.reshape(number * outputs, number * outputs), weights[:, None] * units


def _solved(curvature: Tensor, fixed: Tensor, ascent: Tensor, missing: Tensor) -> Tensor:
    """Solution of ``curvature x - fixed' y = ascent``, ``fixed x = missing``; of least squares where it is singular."""
    corner = fixed.new_zeros(len(fixed), len(fixed))
    matrix = torch.cat([torch.cat([curvature, -fixed.T], dim=1), torch.cat([fixed, corner], dim=1)])
    right = torch.cat([ascent, missing])[:, None]
    solution: Tensor
    solution, info = torch.linalg.solve_ex(matrix, right)
    residual = float((matrix @ solution - right).abs().max()) if len(right) else 0.0
    if int(info) != 0 or not residual <= 1e-9 * float(right.abs().max()):
        solution = torch.linalg.lstsq(matrix.cpu(), right.cpu(), rcond=_DEPENDENT, driver="gelsd").solution.to(right.device)
    return solution[:, 0]
