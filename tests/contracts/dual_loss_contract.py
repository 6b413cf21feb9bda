"""What every loss owes to the dual, tested on cases that a subclass makes."""

from __future__ import annotations

import copy
import math
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.references.conjugates import LossReference, are_zero_sums, is_within
from torch_strongdual.errors import InvalidInputError, ShapeError
from torch_strongdual.losses import AbstractDualLoss, conjugate_loss

from .._typed_torch import backward

UNIT = 2.0**-53

# The health check guards examples that are saved for one class and replayed by another; none are saved (derandomize).
_shared = settings(
    max_examples=12, derandomize=True, suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow]
)
_shared_proof = settings(_shared, max_examples=24)

seeds = st.integers(0, 2**31 - 1)
num_samples = st.integers(1, 20)
num_outputs = st.integers(1, 5)


@dataclass(frozen=True)
class LossCase:
    """A torch loss with targets, and the reference for it."""

    module: nn.Module
    targets: Tensor  # in the form torch takes
    num_outputs: int
    reference: LossReference
    magnitude: float  # sum over samples of what rounding errors of dual terms are relative to

    @property
    def loss(self) -> AbstractDualLoss:
        return conjugate_loss(self.module, self.targets, num_outputs=self.num_outputs)

    def torch_value(self, outputs: Tensor) -> float:
        module = copy.deepcopy(self.module).double()
        targets = self.targets.double() if self.targets.is_floating_point() else self.targets
        return float(module(outputs.double(), targets))


class DualLossContract(ABC):
    """Inherit, and say how cases, outputs and points on the boundary of the domain are made."""

    output_scales: ClassVar[tuple[float, ...]]
    is_smooth: ClassVar[bool] = True
    is_bounded: ClassVar[bool] = True  # whether the domain is
    is_logit_loss: ClassVar[bool] = False

    @abstractmethod
    def make_case(self, rng: np.random.Generator, samples: int, outputs: int) -> LossCase: ...

    @abstractmethod
    def boundary_point(self, rng: np.random.Generator, loss: AbstractDualLoss) -> Tensor:
        """A point most of whose entries are on the boundary of the domain, up to rounding."""

    def outputs(self, rng: np.random.Generator, case: LossCase) -> Tensor:
        shape = (len(case.targets), case.num_outputs)
        return torch.tensor(rng.standard_normal(shape) * rng.choice(self.output_scales))

    def dual_point(self, rng: np.random.Generator, case: LossCase) -> Tensor:
        """A point of the domain up to rounding: a residual, shrunk or not, or one on the boundary."""
        loss = case.loss
        match rng.integers(4):
            case 0:
                return self.boundary_point(rng, loss)
            case 1:
                return loss.residual(self.outputs(rng, case)) * float(rng.uniform())
            case 2:
                return loss.residual(self.outputs(rng, case)) * math.pow(10.0, -float(rng.uniform(0, 12)))
            case _:
                return loss.residual(self.outputs(rng, case))

    # Values and residuals

    @given(seed=seeds, samples=num_samples, outputs=num_outputs)
    @_shared
    def test_value_is_that_of_torch(self, seed: int, samples: int, outputs: int) -> None:
        rng = np.random.default_rng(seed)
        case = self.make_case(rng, samples, outputs)
        at = self.outputs(rng, case)
        # Torch subtracts logits where ours adds terms: its own rounding is relative to them.
        rounding = 4 * UNIT * case.magnitude * float(at.abs().max()) if self.is_logit_loss else 0.0
        assert float(case.loss.value(at)) == pytest.approx(case.torch_value(at), rel=1e-12, abs=rounding)

    @given(seed=seeds, samples=num_samples, outputs=num_outputs)
    @_shared
    def test_value_is_exact(self, seed: int, samples: int, outputs: int) -> None:
        rng = np.random.default_rng(seed)
        case = self.make_case(rng, min(samples, 6), outputs)
        at = self.outputs(rng, case)
        rounding = 4 * UNIT * case.magnitude * (1 + float(at.abs().max())) if self.is_logit_loss else 0.0
        assert float(case.loss.value(at)) == pytest.approx(float(case.reference.value(at.numpy())), rel=1e-14, abs=rounding)

    @given(seed=seeds, samples=num_samples, outputs=num_outputs)
    @_shared
    def test_residual_is_minus_the_gradient(self, seed: int, samples: int, outputs: int) -> None:
        rng = np.random.default_rng(seed)
        case = self.make_case(rng, samples, outputs)
        at = self.outputs(rng, case).requires_grad_()
        backward(case.loss.value(at))
        assert at.grad is not None
        residual = case.loss.residual(at)
        assert not residual.requires_grad
        assert residual.dtype == torch.float64
        torch.testing.assert_close(
            residual, -at.grad, rtol=1e-13, atol=1e-15 * float(at.grad.abs().max()) + 1e-16 * case.magnitude
        )

    def test_float32_outputs_are_converted_exactly(self) -> None:
        rng = np.random.default_rng(0)
        case = self.make_case(rng, 7, 3)
        at = self.outputs(rng, case).float()
        assert float(case.loss.value(at)) == float(case.loss.value(at.double()))
        assert torch.equal(case.loss.residual(at), case.loss.residual(at.double()))
        assert torch.equal(case.loss.fitted_bias(at), case.loss.fitted_bias(at.double()))

    @pytest.mark.parametrize("size", [1e4, 1e6])
    def test_huge_outputs_keep_value_and_gradient_finite(self, size: float) -> None:
        rng = np.random.default_rng(1)
        case = self.make_case(rng, 9, 3)
        at = (torch.tensor(rng.standard_normal((9, case.num_outputs))).sign() * size).requires_grad_()
        value = case.loss.value(at)
        backward(value)
        assert at.grad is not None
        assert bool(torch.isfinite(value))
        assert bool(torch.isfinite(at.grad).all())

    @given(seed=seeds, samples=st.integers(1, 6), outputs=num_outputs)
    @_shared
    def test_value_upper_holds_within_the_output_error(self, seed: int, samples: int, outputs: int) -> None:
        rng = np.random.default_rng(seed)
        case = self.make_case(rng, samples, outputs)
        at = self.outputs(rng, case)
        margin = torch.tensor(rng.uniform(size=at.shape) * rng.choice([0.0, 1e-16, 1e-9, 1.0]))
        upper = case.loss.value_upper(at, margin)
        for direction in (-torch.sign(case.loss.residual(at)), torch.tensor(rng.uniform(-1, 1, size=at.shape))):
            inside = at + direction * margin * (1 - 1e-12)
            inside = torch.where((inside - at).abs() <= margin, inside, at)
            assert case.reference.value(inside.numpy()) <= upper

    @given(seed=seeds, samples=st.integers(1, 6), outputs=num_outputs)
    @_shared
    def test_value_upper_is_tight(self, seed: int, samples: int, outputs: int) -> None:
        rng = np.random.default_rng(seed)
        case = self.make_case(rng, samples, outputs)
        at = self.outputs(rng, case)
        exact = float(case.reference.value(at.numpy()))
        # exp(-d) cannot be known better than to d roundings.
        relative = 1e-14 * (50 + (float(at.abs().max()) if self.is_logit_loss else 0.0))
        assert case.loss.value_upper(at, torch.zeros_like(at)) <= exact * (1 + relative) + 1e-290
        small = 1e-10 * (1 + at.abs())
        lipschitz = float((case.loss.residual(at).abs() * small).sum())
        # A few times the first-order effect, and the second-order one.
        second_order = 1e3 * float(small.square().sum()) + 4e-10 * case.magnitude
        assert case.loss.value_upper(at, small) <= exact * (1 + relative) + 5 * lipschitz + second_order

    # Dual objective

    @given(seed=seeds, samples=num_samples, outputs=num_outputs)
    @_shared
    def test_fenchel_equality_at_the_residual(self, seed: int, samples: int, outputs: int) -> None:
        rng = np.random.default_rng(seed)
        case = self.make_case(rng, samples, outputs)
        at = self.outputs(rng, case)
        residual = case.loss.residual(at)
        value, inner = float(case.loss.value(at)), float((residual * at).sum())
        scale = abs(value) + float((residual * at).abs().sum()) + float((residual * case.loss.targets).abs().sum())
        # Fenchel's equality holds for every subgradient, kinks included.
        assert case.loss.dual_objective(residual) == pytest.approx(value + inner, abs=1e-12 * scale + 1e-15 * case.magnitude)

    @given(seed=seeds, samples=num_samples, outputs=num_outputs)
    @_shared
    def test_weak_duality_everywhere(self, seed: int, samples: int, outputs: int) -> None:
        rng = np.random.default_rng(seed)
        case = self.make_case(rng, samples, outputs)
        at, point = self.outputs(rng, case), self.dual_point(rng, case)
        value, inner = float(case.loss.value(at)), float((point * at).sum())
        dual = case.loss.dual_objective(point)
        scale = abs(value) + float((point * at).abs().sum()) + abs(dual)
        assert math.isfinite(dual)
        assert dual <= value + inner + 1e-12 * scale

    @pytest.mark.parametrize("seed", range(4))
    def test_dual_objective_is_the_minimum_over_outputs(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        case = self.make_case(rng, 4, 3)
        point = case.loss.residual(torch.tensor(rng.standard_normal((4, case.num_outputs)))) * 0.9
        minimum = case.reference.dual_by_minimisation(point.numpy())
        assert case.loss.dual_objective(point) == pytest.approx(minimum, rel=2e-6, abs=2e-6)

    @given(seed=seeds, samples=num_samples, outputs=num_outputs)
    @_shared
    def test_outside_the_domain_is_minus_infinity(self, seed: int, samples: int, outputs: int) -> None:
        if not self.is_bounded:
            pytest.skip("the domain is the whole space")
        rng = np.random.default_rng(seed)
        case = self.make_case(rng, samples, outputs)
        boundary = self.boundary_point(rng, case.loss)
        outside = boundary * (1 + 1e-6)
        assume(float(boundary.abs().max()) > 1e-3 * case.magnitude)  # or 1e-6 of it is as small as rounding of the largest
        assert case.loss.dual_objective(outside) == -math.inf
        assert case.loss.feasible_point(outside, output_bias=False).dual_lower == -math.inf

    # Proven points

    @given(seed=seeds, samples=num_samples, outputs=num_outputs, output_bias=st.booleans())
    @_shared_proof
    def test_feasible_point_is_a_proof(self, seed: int, samples: int, outputs: int, output_bias: bool) -> None:
        rng = np.random.default_rng(seed)
        case = self.make_case(rng, samples, outputs)
        given_point = self.dual_point(rng, case)
        if output_bias:
            given_point = case.loss.balanced(given_point)
        feasible = case.loss.feasible_point(given_point, output_bias=output_bias)
        point = feasible.dual_point.numpy()
        exact = case.reference.dual(point)
        assert exact is not None, "not exactly in the domain"
        assert not output_bias or are_zero_sums(point, axis=0)
        assert feasible.dual_lower <= exact
        assert is_within(point, given_point.numpy(), feasible.row_correction.numpy())
        # ... and a tight one.
        scale = abs(float(exact)) + float((feasible.dual_point * case.loss.targets).abs().sum())
        assert feasible.dual_lower >= float(exact) - 1e-13 * scale - 1e-290
        allowed = 1e-15 * (samples + 5) * (float(given_point.abs().max()) + case.magnitude)
        assert float(feasible.row_correction.max()) <= allowed

    @given(seed=seeds, samples=num_samples, outputs=num_outputs, output_bias=st.booleans())
    @_shared
    def test_feasible_point_is_a_fixed_point(self, seed: int, samples: int, outputs: int, output_bias: bool) -> None:
        rng = np.random.default_rng(seed)
        case = self.make_case(rng, samples, outputs)
        point = self.dual_point(rng, case)
        first = case.loss.feasible_point(case.loss.balanced(point) if output_bias else point, output_bias=output_bias)
        second = case.loss.feasible_point(first.dual_point, output_bias=output_bias)
        assert torch.equal(second.dual_point, first.dual_point)
        assert not second.row_correction.any()

    def test_imbalance_beyond_rounding_proves_nothing(self) -> None:
        rng = np.random.default_rng(3)
        case = self.make_case(rng, 12, 3)
        residual = case.loss.residual(torch.tensor(rng.standard_normal((12, case.num_outputs))))
        point = case.loss.balanced(residual) * 0.5
        assert math.isfinite(case.loss.feasible_point(point, output_bias=True).dual_lower)
        point[0] += 1e-6 * residual[0]  # stays in the domain: rows of the softmax loss keep their sums
        assert case.loss.feasible_point(point, output_bias=True).dual_lower == -math.inf

    def test_zero_is_feasible(self) -> None:
        case = self.make_case(np.random.default_rng(4), 6, 3)
        zero = torch.zeros_like(case.loss.targets)
        feasible = case.loss.feasible_point(zero, output_bias=True)
        exact = case.reference.dual(zero.numpy())
        assert exact is not None
        assert float(exact) - 1e-12 * (1 + case.magnitude) <= feasible.dual_lower <= exact
        assert not feasible.row_correction.any()

    # Balance

    @given(seed=seeds, samples=num_samples, outputs=num_outputs)
    @_shared
    def test_balanced_points_sum_to_zero_in_the_domain(self, seed: int, samples: int, outputs: int) -> None:
        rng = np.random.default_rng(seed)
        case = self.make_case(rng, samples, outputs)
        balanced = case.loss.balanced(self.dual_point(rng, case))
        assert bool((balanced.sum(dim=0).abs() <= 1e-14 * (balanced.abs().sum(dim=0) + case.magnitude)).all())
        assert math.isfinite(case.loss.dual_objective(balanced))
        torch.testing.assert_close(
            case.loss.balanced(balanced), balanced, rtol=1e-12, atol=1e-15 * (case.magnitude + float(balanced.abs().max()))
        )

    # Scale

    @given(seed=seeds, samples=num_samples, outputs=num_outputs)
    @_shared
    def test_best_scale_beats_a_grid(self, seed: int, samples: int, outputs: int) -> None:
        rng = np.random.default_rng(seed)
        case = self.make_case(rng, samples, outputs)
        point = self.dual_point(rng, case)
        max_scale = float(rng.choice([1e-3, 0.7, 1.0, 3.0]))
        best = case.loss.best_scale(point, max_scale)
        assert 0 <= best <= max_scale
        attained = case.loss.dual_objective(best * point)
        candidates = [*np.linspace(0, max_scale, 23), *np.clip(best * np.array([0.9, 0.999, 1.001, 1.1]), 0, max_scale)]
        grid = [case.loss.dual_objective(float(scale) * point) for scale in candidates]
        scale = max(abs(value) for value in [*grid, 0.0] if math.isfinite(value))
        rounding = 1e-12 * (scale + case.magnitude * 1e-3 + best * float((point * case.loss.targets).abs().sum()))
        assert attained >= max(grid) - rounding

    def test_best_scale_without_a_limit(self) -> None:
        case = self.make_case(np.random.default_rng(6), 8, 3)
        zero = torch.zeros_like(case.loss.targets)
        assert math.isfinite(case.loss.best_scale(zero, math.inf))
        residual = case.loss.residual(zero)
        unlimited = case.loss.best_scale(residual, math.inf)
        assert math.isfinite(unlimited)
        assert math.isfinite(case.loss.dual_objective(unlimited * residual))
        assert case.loss.best_scale(residual, 0.0) == 0.0
        limited = case.loss.best_scale(residual, 1e6)
        assert unlimited == pytest.approx(limited, rel=1e-9)

    @pytest.mark.parametrize("max_scale", [-1.0, math.nan])
    def test_scale_limits_that_are_none_are_refused(self, max_scale: float) -> None:
        case = self.make_case(np.random.default_rng(7), 8, 3)
        with pytest.raises(InvalidInputError, match="max_scale"):
            case.loss.best_scale(torch.zeros_like(case.loss.targets), max_scale)

    # Bias

    @given(seed=seeds, samples=num_samples, outputs=num_outputs)
    @_shared
    def test_fitted_bias_minimises_the_loss(self, seed: int, samples: int, outputs: int) -> None:
        rng = np.random.default_rng(seed)
        case = self.make_case(rng, samples, outputs)
        at = self.outputs(rng, case)
        bias = case.loss.fitted_bias(at)
        assert bias.shape == (case.num_outputs,)
        assert bool(torch.isfinite(bias).all())
        attained = float(case.loss.value(at + bias))
        rounding = 1e-12 * (1 + float((at + bias).abs().max())) * case.magnitude
        for size in (1e-3, 0.1, 1.0, float(at.abs().max())):
            other = float(case.loss.value(at + bias + torch.tensor(rng.standard_normal(case.num_outputs) * size)))
            assert attained <= other * (1 + 1e-12) + rounding

    @given(seed=seeds, samples=num_samples, outputs=num_outputs)
    @_shared
    def test_residuals_of_the_fitted_bias_sum_to_zero(self, seed: int, samples: int, outputs: int) -> None:
        if not self.is_smooth:
            pytest.skip("the residual of a median is undetermined")
        rng = np.random.default_rng(seed)
        case = self.make_case(rng, samples, outputs)
        at = self.outputs(rng, case)
        fitted = at + case.loss.fitted_bias(at)
        residual = case.loss.residual(fitted)
        # What neighbouring floats of the bias do to the sum cannot be avoided.
        resolution = 4 * UNIT * float((fitted.abs() + at.abs() + case.loss.targets.abs()).max()) * self.curvature(case)
        scale = float(residual.abs().sum()) + case.magnitude
        assert float(residual.sum(dim=0).abs().max()) <= 1e-10 * scale * 1e-2 + resolution

    @abstractmethod
    def curvature(self, case: LossCase) -> float:
        """Bound on the sum over samples of second derivatives."""

    # Bad input

    def test_nan_proves_nothing(self) -> None:
        case = self.make_case(np.random.default_rng(8), 5, 3)
        broken = torch.zeros_like(case.loss.targets)
        broken[2, 0] = math.nan
        loss = case.loss
        assert loss.dual_objective(broken) == -math.inf
        feasible = loss.feasible_point(broken, output_bias=False)
        assert feasible.dual_lower == -math.inf
        assert bool(torch.isinf(feasible.row_correction).all())
        assert loss.value_upper(broken, torch.zeros_like(broken)) == math.inf
        assert loss.value_upper(torch.zeros_like(broken), broken) == math.inf
        for method in (loss.balanced, loss.fitted_bias, lambda point: loss.best_scale(point, 1.0)):
            with pytest.raises(InvalidInputError, match="1 non-finite"):
                method(broken)

    def test_overflow_proves_nothing(self) -> None:
        case = self.make_case(np.random.default_rng(9), 5, 3)
        huge = torch.full_like(case.loss.targets, 1e250)
        assert case.loss.feasible_point(huge, output_bias=False).dual_lower == -math.inf
        signs = torch.where(torch.arange(huge.numel()).reshape(huge.shape) % 2 == 0, 1.0, -1.0)
        for outputs in (huge * 1e50 * signs, -huge * 1e50 * signs):
            assert case.loss.value_upper(outputs, torch.zeros_like(huge)) >= case.torch_value(outputs.sign() * 1e100)

    def test_wrong_shapes_are_refused(self) -> None:
        case = self.make_case(np.random.default_rng(10), 5, 3)
        loss = case.loss
        wrong = torch.zeros(5, case.num_outputs + 1)
        right = torch.zeros_like(loss.targets)
        calls: list[Callable[[], object]] = [
            lambda: loss.value(wrong),
            lambda: loss.value_upper(wrong, right),
            lambda: loss.value_upper(right, wrong),
            lambda: loss.residual(wrong),
            lambda: loss.dual_objective(wrong),
            lambda: loss.feasible_point(wrong, output_bias=True),
            lambda: loss.balanced(wrong),
            lambda: loss.best_scale(wrong, 1.0),
            lambda: loss.fitted_bias(wrong),
        ]
        for call in calls:
            with pytest.raises(ShapeError, match=r"has shape \(5, "):
                call()

    def test_integers_are_refused(self) -> None:
        case = self.make_case(np.random.default_rng(11), 5, 3)
        with pytest.raises(InvalidInputError, match="floating point"):
            case.loss.value(torch.zeros_like(case.loss.targets, dtype=torch.int64))

    # Properties

    def test_shape_properties_and_copies(self) -> None:
        case = self.make_case(np.random.default_rng(12), 5, 3)
        loss = case.loss
        assert (loss.num_samples, loss.num_outputs) == (5, case.num_outputs) == tuple(loss.targets.shape)
        assert loss.is_non_negative
        assert loss.targets.dtype == torch.float64
        at = torch.ones_like(loss.targets)
        assert float(pickle.loads(pickle.dumps(loss)).value(at)) == float(loss.value(at))
