"""What a restricted program is solved for, in units in which it is well scaled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_strongdual.certification._restricted.scaled_loss import ScaledLoss
from torch_strongdual.certification.training_problem import TrainingProblem

__all__ = ["ProgramData"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProgramData:
    """One restricted program: minimise ``loss(F) + sum_j weights_j |V_j|`` with ``F = atoms V + 1 b'``.

    Atoms have length one, outputs are in units of ``output_unit``, and the objective is divided by what makes the
    loss free of constants.

    Args:
        kind: ``"squared"``, ``"huber"``, ``"absolute"``, ``"logistic"`` or ``"softmax"``.
        output_bias: Whether outputs have a bias.
        atoms: Shape ``(num_samples, num_atoms)``.
        weights: Shape ``(num_atoms,)``.
        targets: Shape ``(num_samples, num_outputs)``.
        last: The kink of the Huber loss, or the masses of logistic and softmax loss; ``None`` for the others.
        lengths: Of the atoms as they were given.
        output_unit: What outputs are divided by.
        dual_unit: What dual points are divided by.
    """

    kind: str
    output_bias: bool
    atoms: Tensor
    weights: Tensor
    targets: Tensor
    last: Tensor | None
    lengths: Tensor
    output_unit: float
    dual_unit: float

    @classmethod
    def of(cls, problem: TrainingProblem, atoms: Tensor) -> ProgramData:
        """The program of ``problem`` over ``atoms``.

        Args:
            problem: Loss, penalty and bias.
            atoms: Features of unit branches, no zero columns, shape ``(num_samples, num_atoms)``.

        Raises:
            UnsupportedLossError: If the loss is none of this package.
        """
        scaled = ScaledLoss.of(problem.loss)
        lengths = torch.linalg.vector_norm(atoms, dim=0)
        return cls(
            kind=scaled.kind,
            output_bias=problem.spec.output_bias,
            atoms=atoms / lengths,
            # A number over a tensor is its reciprocal times the number in torch: one rounding more.
            weights=torch.full_like(lengths, problem.dual_norm_limit) / (lengths * scaled.dual_unit),
            targets=scaled.targets,
            last=scaled.last,
            lengths=lengths,
            output_unit=scaled.output_unit,
            dual_unit=scaled.dual_unit,
        )

    def coefficients_from(self, rows: Tensor) -> Tensor:
        """Coefficients of the atoms as they were given."""
        return rows * (self.output_unit / self.lengths)[:, None]
