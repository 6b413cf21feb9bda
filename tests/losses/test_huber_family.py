"""Squared, Huber, smooth absolute and absolute losses against references."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.contracts.dual_loss_contract import DualLossContract, LossCase
from tests.references.conjugates import HuberReference
from torch_strongdual.errors import InvalidInputError
from torch_strongdual.losses import AbstractDualLoss, HalfSquaredLoss, HuberFamilyLoss, conjugate_loss


class _HuberFamilyContract(DualLossContract):
    output_scales = (1e-8, 1.0, 30.0, 1e8)
    width: ClassVar[float]
    slope_bound: ClassVar[float]

    def module(self, reduction: str) -> nn.Module:
        raise NotImplementedError

    def make_case(self, rng: np.random.Generator, samples: int, outputs: int) -> LossCase:
        reduction = str(rng.choice(["mean", "sum"]))
        scale = float(rng.choice([1e-8, 1.0, 1e8])) if samples % 2 else 1.0
        targets = torch.tensor(
            rng.standard_normal((samples, outputs)) * scale, dtype=[torch.float32, torch.float64][samples % 2]
        )
        module = self.module(reduction)
        normalizer = float(targets.numel()) if reduction == "mean" else 1.0
        if isinstance(module, HalfSquaredLoss):
            normalizer = 1.0
        reference = HuberReference(targets.double().numpy(), normalizer, self.width, self.slope_bound)
        bound = self.slope_bound if self.slope_bound < math.inf else 0.0
        return LossCase(module, targets, outputs, reference, magnitude=samples * outputs * bound / normalizer)

    def boundary_point(self, rng: np.random.Generator, loss: AbstractDualLoss) -> Tensor:
        signs = torch.tensor(rng.choice([-1.0, 1.0], size=tuple(loss.targets.shape)))
        far = loss.targets - 1e30 * signs
        bounded = loss.residual(far)
        return bounded if self.is_bounded else signs * 10.0 ** float(rng.uniform(-8, 8))

    def curvature(self, case: LossCase) -> float:
        return 2 * len(case.targets) / max(self.width, 1e-300)


class TestMSELoss(_HuberFamilyContract):
    width, slope_bound, is_bounded = 0.5, math.inf, False

    def module(self, reduction: str) -> nn.Module:
        return nn.MSELoss(reduction=reduction)


class TestHalfSquaredLoss(_HuberFamilyContract):
    width, slope_bound, is_bounded = 1.0, math.inf, False

    def module(self, reduction: str) -> nn.Module:
        return HalfSquaredLoss()


class TestHuberLoss(_HuberFamilyContract):
    width, slope_bound = 1.0, 0.3

    def module(self, reduction: str) -> nn.Module:
        return nn.HuberLoss(reduction=reduction, delta=0.3)


class TestSmoothL1Loss(_HuberFamilyContract):
    width, slope_bound = 0.7, 1.0

    def module(self, reduction: str) -> nn.Module:
        return nn.SmoothL1Loss(reduction=reduction, beta=0.7)


class TestL1Loss(_HuberFamilyContract):
    width, slope_bound, is_smooth = 0.0, 1.0, False

    def module(self, reduction: str) -> nn.Module:
        return nn.L1Loss(reduction=reduction)


def test_smooth_l1_of_width_zero_is_the_absolute_loss() -> None:
    targets, outputs = torch.tensor([[1.0], [-2.0]]), torch.tensor([[0.5], [4.0]])
    smooth = conjugate_loss(nn.SmoothL1Loss(beta=0.0), targets, num_outputs=1)
    assert float(smooth.value(outputs)) == (0.5 + 6.0) / 2


def test_bias_of_the_squared_loss_is_the_mean_residual() -> None:
    targets = torch.tensor([[1.0, 10.0], [2.0, 20.0], [6.0, 30.0]])
    loss = conjugate_loss(nn.MSELoss(), targets, num_outputs=2)
    assert loss.fitted_bias(torch.ones(3, 2)).tolist() == [2.0, 19.0]


def test_bias_of_the_absolute_loss_is_a_median() -> None:
    loss = conjugate_loss(nn.L1Loss(), torch.tensor([1.0, 2.0, 100.0]), num_outputs=1)
    assert loss.fitted_bias(torch.zeros(3, 1)).tolist() == [2.0]


def test_best_scale_of_the_squared_loss_is_the_closed_form() -> None:
    targets = torch.tensor([[3.0], [4.0]])
    loss = HuberFamilyLoss(targets, normalizer=1, width=1.0, slope_bound=math.inf)
    point = torch.tensor([[1.0], [0.0]])
    assert loss.best_scale(point, math.inf) == 3.0
    assert loss.best_scale(point, 2.0) == 2.0
    assert loss.best_scale(-point, math.inf) == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": -1.0}, "`width` is -1.0"),
        ({"width": 0.0}, "loss without slope bound"),
        ({"width": math.nan}, "`width` is nan"),
        ({"width": math.inf}, "`width` is inf"),
        ({"slope_bound": 0.0}, "`slope_bound` is 0.0"),
        ({"normalizer": 0}, "`normalizer` is 0"),
    ],
)
def test_parameters_out_of_range_are_refused(change: dict[str, float], message: str) -> None:
    arguments = {"normalizer": 1, "width": 1.0, "slope_bound": math.inf} | change
    with pytest.raises(InvalidInputError, match=message):
        HuberFamilyLoss(torch.ones(2, 1), **arguments)
