"""Binary cross-entropy against references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.contracts.dual_loss_contract import DualLossContract, LossCase
from tests.references.conjugates import LogisticReference
from torch_strongdual.errors import InvalidInputError
from torch_strongdual.losses import AbstractDualLoss, LogisticLoss, conjugate_loss


class _LogisticContract(DualLossContract):
    output_scales = (1e-8, 1.0, 5.0, 50.0, 800.0)
    is_logit_loss = True

    def make_targets(self, rng: np.random.Generator, shape: tuple[int, int]) -> Tensor:
        raise NotImplementedError

    def make_weight(self, rng: np.random.Generator, outputs: int) -> Tensor | None:
        return None

    def make_case(self, rng: np.random.Generator, samples: int, outputs: int) -> LossCase:
        targets = self.make_targets(rng, (samples, outputs))
        weight = self.make_weight(rng, outputs)
        reduction = str(rng.choice(["mean", "sum"]))
        normalizer = float(targets.numel()) if reduction == "mean" else 1.0
        wide = targets.double()
        positive = wide if weight is None else wide * weight.double()
        reference = LogisticReference(positive.numpy(), (1 - wide).numpy(), normalizer)
        module = nn.BCEWithLogitsLoss(reduction=reduction, pos_weight=weight)
        return LossCase(module, targets, outputs, reference, magnitude=float((positive + 1 - wide).sum()) / normalizer)

    def boundary_point(self, rng: np.random.Generator, loss: AbstractDualLoss) -> Tensor:
        signs = torch.tensor(rng.choice([-1.0, 1.0], size=tuple(loss.targets.shape)))
        return loss.residual(1e4 * signs)  # the sigmoid is exactly 0 or 1

    def curvature(self, case: LossCase) -> float:
        return case.magnitude


class TestHardTargets(_LogisticContract):
    def make_targets(self, rng: np.random.Generator, shape: tuple[int, int]) -> Tensor:
        return torch.tensor(rng.integers(0, 2, size=shape), dtype=torch.float32)


class TestSoftTargets(_LogisticContract):
    def make_targets(self, rng: np.random.Generator, shape: tuple[int, int]) -> Tensor:
        return torch.tensor(rng.uniform(size=shape) ** float(rng.choice([1.0, 30.0])))


class TestPositiveWeight(_LogisticContract):
    def make_targets(self, rng: np.random.Generator, shape: tuple[int, int]) -> Tensor:
        return torch.tensor(rng.integers(0, 3, size=shape) / 2.0)

    def make_weight(self, rng: np.random.Generator, outputs: int) -> Tensor | None:
        return torch.tensor(rng.choice([0.0, 0.3, 1.0, 7.0], size=outputs))


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_absent_class_gets_a_finite_bias_and_a_zero_dual_column(label: float) -> None:
    targets = torch.tensor([[label, 0.0], [label, 1.0], [label, 0.0]])
    loss = conjugate_loss(nn.BCEWithLogitsLoss(), targets, num_outputs=2)
    outputs = torch.tensor([[800.0, 1.0], [-800.0, 2.0], [3.0, 0.0]])
    fitted = outputs + loss.fitted_bias(outputs)
    assert bool(torch.isfinite(fitted).all())
    assert float(loss.residual(fitted)[:, 0].abs().max()) < 1e-20
    balanced = loss.balanced(loss.residual(outputs))
    assert not balanced[:, 0].any()
    assert balanced[:, 1].any()


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_targets_outside_the_unit_interval_are_refused(value: float) -> None:
    with pytest.raises(InvalidInputError, match=rf"1 of 2 numbers outside \[0, 1\], the first {value}"):
        LogisticLoss(torch.tensor([[value], [1.0]]), normalizer=1)


@pytest.mark.parametrize(
    ("weight", "message"),
    [(torch.ones(3), "shape"), (-torch.ones(2), "holds -1"), (torch.tensor(float("nan")), "non-finite")],
)
def test_positive_weights_that_make_no_sense_are_refused(weight: Tensor, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        LogisticLoss(torch.ones(4, 2), normalizer=1, positive_weight=weight)
