"""Alternating directions for the absolute loss over a finite set of atoms, ended by Newton steps on its kinks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_strongdual.certification._restricted.kink_program import KinkProgram
from torch_strongdual.certification._restricted.program_data import ProgramData
from torch_strongdual.certification.deadline import Deadline

__all__ = ["AbsoluteLassoResult", "solve_absolute_lasso"]

_CHECK_EVERY = 50
_FIRST_POLISH, _POLISH_APART = 200, 1.3
_OVER = 1.6  # relaxation
_UNEVEN = 5.0  # ratio of the residuals at which the penalty changes
_SETTLED = 2000  # iterations after which it no longer does


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AbsoluteLassoResult:
    """Where the iteration ended, in the units of the training problem.

    Args:
        coefficients: One row an atom, shape ``(num_atoms, out_features)``; exactly zero rows for atoms not used.
        multipliers: Dual point, in the domain, balanced if there is a bias, shape ``(num_samples, out_features)``.
        relative_gap: Duality gap over the restricted problem.
    """

    coefficients: Tensor
    multipliers: Tensor
    relative_gap: float


def solve_absolute_lasso(
    data: ProgramData,
    start: Tensor,  # shape: (num_atoms, out_features)
    *,
    rtol: float,
    deadline: Deadline,
    max_iterations: int = 20_000,
) -> AbsoluteLassoResult:
    r"""Minimise ``sum |A V + 1 b' - Y| + sum_j weights_j ||V_j||`` over V (and b, if there is one).

    Alternating directions on ``R = A V - Y`` and ``Z = V`` find which errors are zero and which atoms are in use. With these
    guessed the optimum is a stationary point of a smooth function under linear constraints: Newton steps, which correct the
    guess as they go, end at the duality gap of machine precision once it is nearly right, and change nothing before.

    Args:
        data: A program of the absolute loss.
        start: Coefficients to start from.
        rtol: Relative duality gap at which to stop.
        deadline: When to stop anyway.
        max_iterations: When to stop anyway.

    References:
        Boyd, Parikh, Chu, Peleato, Eckstein, "Distributed Optimization and Statistical Learning via the Alternating Direction
        Method of Multipliers", Foundations and Trends in Machine Learning 2011, sections 3.4 and 6.1.
    """
    program = KinkProgram.of(data)
    rows = start * (data.lengths / data.output_unit)[:, None]
    rows = torch.cat([rows, rows.new_zeros(len(program.weights) - len(rows), rows.shape[1])])
    best = program.point(rows, (program.targets - program.atoms @ rows).sign())
    state, polish_at = _Splitting(program, rows), float(_FIRST_POLISH)
    for iteration in range(1, max_iterations + 1):
        if best.relative_gap <= rtol or deadline.expired:
            break
        state.advance()
        if iteration % _CHECK_EVERY:
            continue
        best = best.or_better(program.point(state.coefficients, state.multipliers))
        if iteration >= polish_at and best.relative_gap > rtol:
            best = best.or_better(program.polished(state.coefficients, state.multipliers, state.penalty, rtol=rtol))
            polish_at *= _POLISH_APART
        if iteration <= _SETTLED:
            state.rebalance()
    return AbsoluteLassoResult(
        coefficients=data.coefficients_from(best.coefficients[: data.atoms.shape[1]]),
        multipliers=best.multipliers * data.dual_unit,
        relative_gap=best.relative_gap,
    )


class _Splitting:
    """Errors and coefficients, each in two copies that the iteration draws together, with a penalty of its own."""

    def __init__(self, program: KinkProgram, start: Tensor) -> None:
        self._program, atoms = program, program.atoms
        self._gram = atoms.T @ atoms
        self.coefficients, self._errors = start, atoms @ start - program.targets
        self._forces, self._pulls = torch.zeros_like(self._errors), torch.zeros_like(start)
        size = float((program.targets - program.targets.median(dim=0).values).abs().mean())
        self.penalty = self._penalty = 1.0 / size if size > 0.0 else 1.0  # of errors, of coefficients
        self._latest = self._errors, start, self._errors, start  # both copies, and those before the last step
        self._factorise()

    def _factorise(self) -> None:
        ratio = self._penalty / self.penalty
        identity = torch.eye(len(self._gram), dtype=self._gram.dtype, device=self._gram.device)
        self._root = torch.linalg.cholesky(self._gram + ratio * identity)

    @property
    def multipliers(self) -> Tensor:
        """Near a dual point."""
        return -self._forces

    def advance(self) -> None:
        """One round: least squares, then both proximal maps, then the multipliers."""
        program, atoms, ratio = self._program, self._program.atoms, self._penalty / self.penalty
        aim = atoms.T @ (program.targets + self._errors - self._forces / self.penalty)
        moved = torch.cholesky_solve(aim + ratio * self.coefficients - self._pulls / self.penalty, self._root)
        made = atoms @ moved - program.targets
        earlier_errors, earlier = self._errors, self.coefficients
        errors = _OVER * made + (1.0 - _OVER) * self._errors + self._forces / self.penalty
        rows = _OVER * moved + (1.0 - _OVER) * self.coefficients + self._pulls / self._penalty
        self._errors = torch.nn.functional.softshrink(errors, 1.0 / self.penalty)
        lengths = torch.linalg.vector_norm(rows, dim=1).clamp(min=1e-300)
        self.coefficients = rows * (1.0 - program.weights / (self._penalty * lengths)).clamp(min=0.0)[:, None]
        self._forces, self._pulls = self.penalty * (errors - self._errors), self._penalty * (rows - self.coefficients)
        self._latest = made, moved, earlier_errors, earlier

    def rebalance(self) -> None:
        """Change penalties where copies agree much better than multipliers have settled, or the other way round."""
        made, moved, earlier_errors, earlier = self._latest
        of_errors = _factor(made - self._errors, self._errors, self.penalty * (self._errors - earlier_errors), self._forces)
        of_rows = _factor(moved - self.coefficients, moved, self._penalty * (self.coefficients - earlier), self._pulls)
        if of_errors != 1.0 or of_rows != 1.0:
            self.penalty, self._penalty = self.penalty * of_errors, self._penalty * of_rows
            self._factorise()


def _factor(apart: Tensor, copy: Tensor, change: Tensor, multipliers: Tensor) -> float:
    """By which to multiply a penalty."""
    primal, dual = _norm(apart) / max(_norm(copy), 1e-300), _norm(change) / max(_norm(multipliers), 1e-300)
    ratio = primal / max(dual, 1e-300)
    return 1.0 if 1.0 / _UNEVEN <= ratio <= _UNEVEN else min(max(math.sqrt(ratio), 0.2), 5.0)


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor))
