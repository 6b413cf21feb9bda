"""Losses of convex programs: free of constants, in units of the targets."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from torch_strongdual.errors import UnsupportedLossError
from torch_strongdual.losses import AbstractDualLoss, HuberFamilyLoss, LogisticLoss, SoftmaxLoss

__all__ = ["ScaledLoss"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScaledLoss:
    """A loss divided by ``output_unit * dual_unit``, as a function of outputs in units of ``output_unit``.

    Args:
        kind: ``"squared"``, ``"huber"``, ``"absolute"``, ``"logistic"`` or ``"softmax"``.
        targets: In these units, shape ``(num_samples, num_outputs)``.
        last: The kink of the Huber loss, or the masses of logistic and softmax loss; ``None`` for the others.
        output_unit: What outputs are divided by.
        dual_unit: What dual points are divided by.
    """

    kind: str
    targets: Tensor
    last: Tensor | None
    output_unit: float
    dual_unit: float

    @classmethod
    def of(cls, loss: AbstractDualLoss, targets: Tensor | None = None) -> ScaledLoss:
        """The scaled form of ``loss``; differentiable in ``targets``, if given.

        Args:
            loss: One of this package.
            targets: Those of the loss, as a tensor to differentiate in.

        Raises:
            UnsupportedLossError: If the loss is none of this package.
        """
        targets = loss.targets if targets is None else targets
        if isinstance(loss, HuberFamilyLoss):
            size = max(float(loss.targets.abs().max()), 1e-300)
            if loss.width == 0.0:
                return cls._of("absolute", targets / size, None, size, loss.slope_bound / loss.normalizer)
            unit = size / (loss.normalizer * loss.width)
            if loss.slope_bound == math.inf:
                return cls._of("squared", targets / size, None, size, unit)
            kink = torch.tensor(loss.slope_bound * loss.width / size, dtype=torch.float64)
            return cls._of("huber", targets / size, kink, size, unit)
        if isinstance(loss, LogisticLoss):
            positive = targets * loss.positive_weight
            return cls._of("logistic", positive, positive + 1.0 - targets, 1.0, 1.0 / loss.normalizer)
        if isinstance(loss, SoftmaxLoss):
            return cls._of("softmax", targets, targets.sum(dim=1), 1.0, 1.0 / loss.normalizer)
        raise UnsupportedLossError(
            f"{type(loss).__name__} has no cone program here; expected a loss of torch_strongdual.losses."
        )

    @classmethod
    def _of(cls, kind: str, targets: Tensor, last: Tensor | None, output_unit: float, dual_unit: float) -> ScaledLoss:
        return cls(kind=kind, targets=targets, last=last, output_unit=output_unit, dual_unit=dual_unit)

    def value(self, outputs: Tensor) -> Tensor:  # shape: ()
        """The loss; differentiable in ``outputs`` and in its own tensors.

        Args:
            outputs: In units, shape ``(num_samples, num_outputs)``.

        Raises:
            UnsupportedLossError: For the absolute loss, which has no second derivative anywhere that matters.
        """
        if self.kind == "absolute":
            raise UnsupportedLossError("The absolute loss has no curvature; expected a loss with second derivatives.")
        if self.last is None:
            return 0.5 * (outputs - self.targets).square().sum()
        if self.kind == "huber":
            error = outputs - self.targets
            inner = torch.maximum(torch.minimum(error, self.last.detach()), -self.last.detach())
            return (0.5 * inner.square() + self.last * (error - inner).abs()).sum()
        above = -logsigmoid(-outputs) if self.kind == "logistic" else torch.logsumexp(outputs, dim=1)
        return (self.last * above).sum() - (self.targets * outputs).sum()

    def slope(self, outputs: Tensor) -> Tensor:  # shape: (num_samples, num_outputs)
        """Gradient of :meth:`value`; differentiable where ``outputs`` and its own tensors are."""
        with torch.enable_grad():
            leaf = outputs if outputs.requires_grad else outputs.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.value(leaf), leaf, create_graph=True)
        return slope

    def curvature(self, outputs: Tensor) -> Tensor:  # shape: (num_samples, num_outputs, num_outputs)
        """Second derivatives of :meth:`value`: the loss is a sum over samples."""
        leaf = outputs.detach().requires_grad_()
        columns = self.slope(leaf).sum(dim=0)
        return torch.stack([torch.autograd.grad(column, leaf, retain_graph=True)[0] for column in columns], dim=2)

    def detached(self) -> ScaledLoss:
        """The same numbers, without their history."""
        return dataclasses.replace(self, targets=self.targets.detach(), last=None if self.last is None else self.last.detach())

    def parameters(self) -> list[Tensor]:
        """Targets, and the loss's own parameter if it has one, which is never negative."""
        return [self.targets, *([] if self.last is None else [self.last])]
