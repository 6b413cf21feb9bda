"""Cross-entropy against references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.contracts.dual_loss_contract import DualLossContract, LossCase
from tests.references.conjugates import SoftmaxReference
from torch_strongdual.errors import InvalidInputError, ShapeError
from torch_strongdual.losses import AbstractDualLoss, SoftmaxLoss, conjugate_loss


class _SoftmaxContract(DualLossContract):
    """Cases are made by torch's definitions of weights and smoothing, written out here a second time."""

    output_scales = (1e-8, 1.0, 5.0, 50.0, 800.0)
    is_logit_loss = True
    label_smoothing = 0.0

    def make_targets(self, rng: np.random.Generator, samples: int, classes: int) -> Tensor:
        raise NotImplementedError

    def make_weight(self, rng: np.random.Generator, classes: int) -> Tensor | None:
        return None

    def make_case(self, rng: np.random.Generator, samples: int, outputs: int) -> LossCase:
        classes = max(outputs, 2)
        targets = self.make_targets(rng, samples, classes)
        weight = self.make_weight(rng, classes)
        reduction = str(rng.choice(["mean", "sum"]))
        weights = np.ones(classes) if weight is None else weight.double().numpy()
        is_labels = targets.dtype == torch.int64
        probabilities = np.eye(classes)[targets.numpy()] if is_labels else targets.double().numpy()
        if self.label_smoothing:
            probabilities = probabilities * (1 - self.label_smoothing) + self.label_smoothing / classes
        rows = probabilities * weights
        total = math.fsum(weights[targets.numpy()].tolist()) if is_labels else float(samples)
        normalizer = total if reduction == "mean" else 1.0
        module = nn.CrossEntropyLoss(weight=weight, reduction=reduction, label_smoothing=self.label_smoothing)
        return LossCase(module, targets, classes, SoftmaxReference(rows, normalizer), magnitude=float(rows.sum()) / normalizer)

    def boundary_point(self, rng: np.random.Generator, loss: AbstractDualLoss) -> Tensor:
        chosen = torch.tensor(rng.integers(0, loss.num_outputs, size=loss.num_samples))
        return loss.residual(1e4 * nn.functional.one_hot(chosen, loss.num_outputs).double())  # all mass in one class

    def curvature(self, case: LossCase) -> float:
        return case.magnitude


class TestLabels(_SoftmaxContract):
    def make_targets(self, rng: np.random.Generator, samples: int, classes: int) -> Tensor:
        return torch.tensor(rng.integers(0, classes, size=samples))


class TestWeightedLabels(TestLabels):
    def make_weight(self, rng: np.random.Generator, classes: int) -> Tensor | None:
        return torch.tensor(rng.choice([0.1, 1.0, 4.0], size=classes), dtype=torch.float32)


class TestSmoothedWeightedLabels(TestWeightedLabels):
    label_smoothing = 0.1


class TestProbabilities(_SoftmaxContract):
    def make_targets(self, rng: np.random.Generator, samples: int, classes: int) -> Tensor:
        return torch.tensor(rng.dirichlet(np.full(classes, 0.2), size=samples), dtype=torch.float32).clamp(0, 1)


class TestSmoothedWeightedProbabilities(TestProbabilities):
    label_smoothing = 0.3

    def make_weight(self, rng: np.random.Generator, classes: int) -> Tensor | None:
        return torch.tensor(rng.choice([0.0, 1.0, 4.0], size=classes))


class TestOneClassPresent(_SoftmaxContract):
    def make_targets(self, rng: np.random.Generator, samples: int, classes: int) -> Tensor:
        return torch.full((samples,), int(rng.integers(classes)))


def test_absent_classes_get_a_finite_bias_and_zero_dual_columns() -> None:
    loss = conjugate_loss(nn.CrossEntropyLoss(), torch.tensor([0, 2, 0, 2]), num_outputs=4)
    outputs = torch.tensor([[0.0, 800.0, 1.0, 5.0], [3.0, 1.0, -800.0, 2.0], [0.0, 0.0, 0.0, 0.0], [9.0, -9.0, 9.0, 1.0]])
    bias = loss.fitted_bias(outputs)
    residual = loss.residual(outputs + bias)
    assert bool(torch.isfinite(bias).all())
    assert float(residual[:, [1, 3]].abs().max()) < 1e-20
    balanced = loss.balanced(loss.residual(outputs))
    assert not balanced[:, [1, 3]].any()


def test_two_classes_agree_with_the_logistic_loss() -> None:
    rng = np.random.default_rng(0)
    labels, logits = torch.tensor(rng.integers(0, 2, size=30)), torch.tensor(rng.standard_normal((30, 1)))
    softmax = conjugate_loss(nn.CrossEntropyLoss(), labels, num_outputs=2)
    logistic = conjugate_loss(nn.BCEWithLogitsLoss(), labels.double(), num_outputs=1)
    two = torch.cat([torch.zeros_like(logits), logits], dim=1)
    one_residual = logistic.residual(logits)
    torch.testing.assert_close(softmax.residual(two), torch.cat([-one_residual, one_residual], dim=1))
    assert softmax.dual_objective(softmax.residual(two)) == pytest.approx(logistic.dual_objective(one_residual), rel=1e-13)
    bias = softmax.fitted_bias(two)
    assert float(bias[1] - bias[0]) == pytest.approx(float(logistic.fitted_bias(logits)), rel=1e-12)


def test_well_fitted_samples_keep_relative_precision() -> None:
    """Near interpolation value and dual differ by what is proven, not by rounding of 1 - p."""
    loss = conjugate_loss(nn.CrossEntropyLoss(), torch.arange(4), num_outputs=4)
    outputs = 60.0 * torch.eye(4)
    residual = loss.residual(outputs)
    reference = SoftmaxReference(np.eye(4), 4.0)
    feasible = loss.feasible_point(residual, output_bias=False)
    exact = reference.dual(feasible.dual_point.numpy())
    assert exact is not None
    assert float(exact) * (1 - 1e-12) <= feasible.dual_lower <= exact
    value = reference.value(outputs.double().numpy())
    assert value <= loss.value_upper(outputs, torch.zeros_like(outputs)) <= value * (1 + 1e-12)


def test_one_class_is_refused() -> None:
    with pytest.raises(ShapeError, match="at least two classes"):
        SoftmaxLoss(torch.ones(3, 1), normalizer=1)


def test_negative_targets_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="holds -1"):
        SoftmaxLoss(torch.tensor([[1.0, -1.0]]), normalizer=1)
