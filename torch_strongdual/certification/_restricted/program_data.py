"""What a restricted program is solved for, in units in which it is well scaled."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_strongdual.certification._restricted.scaled_loss import ScaledLoss
from torch_strongdual.certification.training_problem import TrainingProblem

__all__ = ["ProgramData", "ProgramShape"]

_FEWEST_ATOMS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramShape:
    """All that a canonicalised program depends on, numbers aside.

    Args:
        kind: ``"squared"``, ``"huber"``, ``"absolute"``, ``"logistic"`` or ``"softmax"``.
        num_samples: Rows of outputs.
        num_outputs: Columns of outputs.
        num_atoms: Columns of the atom matrix.
        output_bias: Whether outputs have a bias.
    """

    kind: str
    num_samples: int
    num_outputs: int
    num_atoms: int
    output_bias: bool

    @property
    def num_numbers(self) -> int:
        """Atoms times samples times outputs."""
        return self.num_atoms * self.num_samples * self.num_outputs

    def padded(self) -> ProgramShape:
        """The same with a power of two as the number of atoms."""
        number = max(_FEWEST_ATOMS, 2 ** math.ceil(math.log2(max(self.num_atoms, 1))))
        return dataclasses.replace(self, num_atoms=number)

    def parameter_shapes(self) -> list[tuple[tuple[int, ...], bool]]:
        """Shape of each parameter, and whether it is never negative: atoms, weights, targets, the loss's own."""
        outputs = self.num_samples, self.num_outputs
        last: tuple[int, ...] = {"logistic": outputs, "softmax": (self.num_samples,)}.get(self.kind, ())
        shapes: list[tuple[tuple[int, ...], bool]] = [
            ((self.num_samples, self.num_atoms), False), ((self.num_atoms,), True), (outputs, False)
        ]  # fmt: skip
        return shapes if self.kind in ("squared", "absolute") else [*shapes, (last, True)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProgramData:
    """One restricted program: minimise ``loss(F) + sum_j weights_j |V_j|`` with ``F = atoms V + 1 b'``.

    Atoms have length one, outputs are in units of ``output_unit``, and the objective is divided by what makes the
    loss free of constants.

    Args:
        shape: Sizes, kind of loss, bias.
        atoms: Shape ``(num_samples, num_atoms)``.
        weights: Shape ``(num_atoms,)``.
        targets: Shape ``(num_samples, num_outputs)``.
        last: The kink of the Huber loss, or the masses of logistic and softmax loss; ``None`` for the others.
        lengths: Of the atoms as they were given.
        output_unit: What outputs are divided by.
        dual_unit: What dual points are divided by.
    """

    shape: ProgramShape
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
        loss = problem.loss
        scaled = ScaledLoss.of(loss)
        lengths = torch.linalg.vector_norm(atoms, dim=0)
        return cls(
            shape=ProgramShape(
                kind=scaled.kind,
                num_samples=atoms.shape[0],
                num_outputs=loss.num_outputs,
                num_atoms=atoms.shape[1],
                output_bias=problem.spec.output_bias,
            ),
            atoms=atoms / lengths,
            # A number over a tensor is its reciprocal times the number in torch: one rounding more.
            weights=torch.full_like(lengths, problem.dual_norm_limit) / (lengths * scaled.dual_unit),
            targets=scaled.targets,
            last=scaled.last,
            lengths=lengths,
            output_unit=scaled.output_unit,
            dual_unit=scaled.dual_unit,
        )

    def padded(self) -> ProgramData:
        """The same in a padded shape; atoms added are zero, and so are their coefficients."""
        shape = self.shape.padded()
        missing = shape.num_atoms - self.shape.num_atoms
        return dataclasses.replace(
            self,
            shape=shape,
            atoms=torch.cat([self.atoms, self.atoms.new_zeros(self.shape.num_samples, missing)], dim=1),
            weights=torch.cat([self.weights, self.weights.new_ones(missing)]),
        )

    def parameters(self) -> list[Tensor]:
        """In the order of :meth:`ProgramShape.parameter_shapes`."""
        return [self.atoms, self.weights, self.targets, *([] if self.last is None else [self.last])]

    def coefficients_from(self, rows: Tensor) -> Tensor:
        """Coefficients of the atoms as they were given."""
        return rows * (self.output_unit / self.lengths)[:, None]
