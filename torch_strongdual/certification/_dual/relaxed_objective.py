"""The loss of a training problem in the units in which its relaxation is solved, and the way back for dual points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.oracles._doubly_nonnegative._joint.relaxed_losses import (
    AbstractRelaxedLoss,
    HuberRelaxedLoss,
    LogisticRelaxedLoss,
    SoftmaxRelaxedLoss,
)
from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.losses import HuberFamilyLoss, LogisticLoss, SoftmaxLoss

__all__ = ["RelaxedObjective"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_LOGISTIC_CURVATURE, _SOFTMAX_CURVATURE = 0.25, 0.5  # at most, for masses of one
_TINY = 1e-300  # for targets of zero: of no use, the unit says so


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RelaxedObjective:
    """The loss of the samples that were kept, of one output as a function of vectors.

    Args:
        loss: In its own units.
        dual_unit: Of its dual points.
        rest: Dual point of the zero net, which samples that were left out keep, shape (n, c).
        kept: Which samples were kept, shape (n,).
    """

    loss: AbstractRelaxedLoss
    dual_unit: float
    rest: FloatArray
    kept: BoolArray

    @staticmethod
    def supports(problem: TrainingProblem) -> bool:
        """Squared and Huber losses; of several outputs also entropies, but for two classes, which are one output."""
        loss = problem.loss
        if isinstance(loss, HuberFamilyLoss):
            return loss.width > 0.0
        return loss.num_outputs > (2 if isinstance(loss, SoftmaxLoss) else 1) and isinstance(loss, LogisticLoss | SoftmaxLoss)

    @classmethod
    def of(cls, problem: TrainingProblem, kept: BoolArray) -> RelaxedObjective:
        """The objective of a problem that is supported.

        Args:
            problem: What is trained.
            kept: Samples that have features, shape (n,).
        """
        loss, outputs = problem.loss, problem.null_outputs()
        rest = loss.residual(outputs)
        unit = float(torch.linalg.norm(rest))
        relaxed: AbstractRelaxedLoss
        if isinstance(loss, HuberFamilyLoss):
            residual = (loss.targets - outputs).numpy()
            size = float(np.linalg.norm(residual))
            unit = size / (loss.normalizer * loss.width)
            targets = residual[kept] / max(size, _TINY)
            bound = loss.slope_bound / loss.normalizer / max(unit, _TINY)
            relaxed = HuberRelaxedLoss(targets=targets[:, 0] if loss.num_outputs == 1 else targets, slope_bound=bound)
        elif isinstance(loss, SoftmaxLoss):
            targets, base = loss.targets.numpy(), outputs.numpy()
            length = loss.normalizer * unit
            curvature = _SOFTMAX_CURVATURE * float(targets.sum(axis=1).max())
            output_unit = length / max(curvature, _TINY)
            relaxed = SoftmaxRelaxedLoss(targets=targets[kept], base=base[kept], output_unit=output_unit, dual_unit=length)
        else:
            assert isinstance(loss, LogisticLoss)
            positive, negative = (loss.positive_weight * loss.targets).numpy(), 1.0 - loss.targets.numpy()
            length = loss.normalizer * unit
            relaxed = LogisticRelaxedLoss(
                positive=positive[kept],
                negative=negative[kept],
                base=outputs.numpy()[kept],
                output_unit=length / (_LOGISTIC_CURVATURE * float((positive + negative).max())),
                dual_unit=length,
            )
        return cls(loss=relaxed, dual_unit=unit, rest=rest.numpy(), kept=kept)

    def candidate(self, dual_point: FloatArray) -> Tensor:
        """The problem's dual point for the relaxation's, (k,) or (k, c); shape ``(num_samples, out_features)``."""
        full = self.rest.copy()
        full[self.kept] = self.dual_unit * dual_point.reshape(len(dual_point), -1)
        return torch.from_numpy(full)
