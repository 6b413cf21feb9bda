"""Accelerated proximal gradient for the training problem restricted to a finite set of atoms (smooth losses)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_strongdual.certification._restricted.support_polish import polished
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.functional import prox_branch_norm

__all__ = ["GroupLassoResult", "solve_group_lasso"]

_CHECK_EVERY = 25
_POLISH_EVERY = 75


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupLassoResult:
    """Where the iteration ended.

    Args:
        coefficients: One row an atom, shape ``(num_atoms, out_features)``; exactly zero rows for atoms not used.
        outputs: Outputs of the restricted network, shape ``(num_samples, out_features)``.
        objective: Restricted primal objective there.
        relative_gap: Its own duality gap over the restricted problem.
    """

    coefficients: Tensor
    outputs: Tensor
    objective: float
    relative_gap: float


def solve_group_lasso(
    problem: TrainingProblem,
    atoms: Tensor,  # shape: (num_samples, num_atoms)
    start: Tensor,  # shape: (num_atoms, out_features)
    *,
    rtol: float,
    deadline: Deadline,
    max_iterations: int = 20_000,
) -> GroupLassoResult:
    r"""Minimise ``loss(A V + 1 b') + dual_norm_limit * sum_j ||V_j||`` over V (and b, if the output has a bias).

    Columns are scaled to unit length, which leaves the problem as it is and evens out the steps. The step adapts by
    backtracking; momentum restarts when it points uphill (O'Donoghue and Candes 2015). These steps find the atoms in use;
    among them a quasi-Newton method goes on from time to time.

    Args:
        problem: Loss, penalty and bias.
        atoms: Features of unit branches, not zero.
        start: Coefficients to start from.
        rtol: Relative duality gap, over the restricted problem, at which to stop.
        deadline: When to stop anyway.
        max_iterations: When to stop anyway.
    """
    lengths = torch.linalg.vector_norm(atoms, dim=0)
    scaled = atoms / lengths
    weights = problem.dual_norm_limit / lengths
    if problem.spec.output_bias:
        scaled = torch.cat([scaled, scaled.new_full((len(scaled), 1), len(scaled) ** -0.5)], dim=1)
        weights = torch.cat([weights, weights.new_zeros(1)])
        start = torch.cat([start, start.new_zeros(1, start.shape[1])])
        lengths = torch.cat([lengths, lengths.new_ones(1)])
    state = _Iterate(problem, scaled, weights, start * lengths[:, None])
    gap = state.relative_gap()
    for iteration in range(1, max_iterations + 1):
        if gap <= rtol or deadline.expired:
            break
        state.advance()
        if iteration % _POLISH_EVERY == 0:
            state.polish(deadline)
        if iteration % _CHECK_EVERY == 0:
            gap = state.relative_gap()
    coefficients = (state.point / lengths[:, None])[: atoms.shape[1]]
    outputs = scaled @ state.point
    return GroupLassoResult(
        coefficients=coefficients, outputs=outputs, objective=state.objective(outputs, state.point), relative_gap=gap
    )


class _Iterate:
    """Current point, momentum and step of the accelerated iteration."""

    def __init__(self, problem: TrainingProblem, atoms: Tensor, weights: Tensor, start: Tensor) -> None:
        self.problem, self.atoms, self.weights = problem, atoms, weights
        self.point = self.ahead = start
        self.speed = 1.0
        self.curvature = self._first_curvature()

    def _first_curvature(self) -> float:
        """Curvature of the loss along the residual, as a first guess of the Lipschitz constant."""
        outputs = self.atoms @ self.point
        residual = self.problem.loss.residual(outputs)
        direction = self.atoms @ (self.atoms.T @ residual)
        length = float(torch.linalg.vector_norm(direction))
        if length == 0.0:
            return 1.0
        # Both steps are relative to the outputs the loss is made for, so that the guess does not depend on units.
        size = float(torch.linalg.vector_norm(self.problem.loss.targets)) + 1e-300
        change = residual - self.problem.loss.residual(outputs + direction * (1e-3 * size / length))
        guess = float(torch.linalg.vector_norm(change)) / (1e-3 * size)
        squared = float(torch.linalg.vector_norm(self.atoms.T @ direction)) ** 2 / length**2
        return max(guess * squared, 1e-12 / size)

    def objective(self, outputs: Tensor, point: Tensor) -> float:
        """Restricted primal objective."""
        penalty = self.weights @ torch.linalg.vector_norm(point, dim=1)
        return float(self.problem.loss.value(outputs) + penalty)

    def advance(self) -> None:
        """One proximal gradient step from the extrapolated point."""
        loss, atoms = self.problem.loss, self.atoms
        outputs = atoms @ self.ahead
        ascent = atoms.T @ loss.residual(outputs)
        value = float(loss.value(outputs))
        for _ in range(60):
            shifted = self.ahead + ascent / self.curvature
            moved = prox_branch_norm(shifted[:, :, None], self.weights / self.curvature)[:, :, 0]
            step = moved - self.ahead
            model = value - float((ascent * step).sum()) + 0.5 * self.curvature * float((step * step).sum())
            if float(loss.value(atoms @ moved)) <= model + 1e-13 * abs(value):
                break
            self.curvature *= 2.0
        if float(((self.ahead - moved) * (moved - self.point)).sum()) > 0.0:
            self.speed = 1.0
        faster = 0.5 * (1.0 + (1.0 + 4.0 * self.speed**2) ** 0.5)
        self.ahead = moved + (self.speed - 1.0) / faster * (moved - self.point)
        self.point, self.speed = moved, faster

    def polish(self, deadline: Deadline) -> None:
        """Quasi-Newton descent over the atoms in use; kept if it lowers the objective."""
        loss = self.problem.loss

        def value_and_residual(outputs: Tensor) -> tuple[float, Tensor]:
            return float(loss.value(outputs)), loss.residual(outputs)

        found = polished(value_and_residual, self.atoms, self.weights, self.point, deadline=deadline)
        if self.objective(self.atoms @ found, found) < self.objective(self.atoms @ self.point, self.point):
            self.point = self.ahead = found
            self.speed = 1.0

    def relative_gap(self) -> float:
        """Duality gap over the restricted problem, relative to its primal value."""
        problem, outputs = self.problem, self.atoms @ self.point
        candidate = problem.dual_candidate(outputs)
        penalised = self.weights > 0
        if not penalised.any():  # a path decay that underflows against the atoms: no multiple but zero is feasible
            return math.inf
        norms = torch.linalg.vector_norm(self.atoms[:, penalised].T @ candidate, dim=1)
        steepest = float((norms / self.weights[penalised]).max())
        scale = problem.loss.best_scale(candidate, 1.0 / steepest if steepest > 0 else 1.0)
        primal = self.objective(outputs, self.point)
        return (primal - problem.loss.dual_objective(scale * candidate)) / max(abs(primal), 1e-300)
