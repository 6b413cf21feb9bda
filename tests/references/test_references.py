"""The references against each other and against what can be counted or written down."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import linprog

from .convex_program import convex_program_optimum, gated_program_optimum, linear_program_optimum
from .enumeration import enumerate_patterns, exact_dual_norm
from .planar import exact_planar_dual_norm
from .sampled_dual_norm import sampled_dual_norm


@pytest.mark.parametrize(("n", "r"), [(1, 1), (5, 2), (7, 3), (6, 4), (4, 6)])
def test_number_of_patterns_is_the_one_of_cover(n: int, r: int) -> None:
    rows = np.random.default_rng(n + 10 * r).standard_normal((n, r))
    assert len(enumerate_patterns(rows)) == 2 * sum(math.comb(n - 1, k) for k in range(r))


def test_patterns_of_degenerate_rows() -> None:
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    found = {tuple(p) for p in enumerate_patterns(rows)}
    assert found == {(s, 0.0, s, -s, t) for s in (1.0, -1.0) for t in (1.0, -1.0)}


def test_patterns_are_the_feasible_ones_of_a_linear_program() -> None:
    rows = np.random.default_rng(3).integers(-2, 3, (5, 3)).astype(float)
    rows[4] = rows[0] + rows[1]
    found = {tuple(p) for p in enumerate_patterns(rows)}
    used = np.linalg.norm(rows, axis=1) > 0
    for index in range(2**5):
        signs = np.array([1.0 if index >> i & 1 else -1.0 for i in range(5)]) * used
        program = linprog(np.zeros(3), A_ub=-(signs[:, None] * rows)[used], b_ub=-np.ones(used.sum()), bounds=(None, None))
        assert (tuple(signs) in found) == (program.status == 0)


@pytest.mark.parametrize("slope", [0.0, 0.3, -0.5])
@pytest.mark.parametrize("one_sided", [False, True])
def test_planar_sweep_is_the_enumeration(slope: float, one_sided: bool) -> None:
    generator = np.random.default_rng(1)
    for _ in range(15):
        n = int(generator.integers(1, 8))
        rows, duals = generator.standard_normal((n, 2)), generator.standard_normal(n)
        linear = generator.standard_normal(2) * generator.integers(0, 2)
        swept = exact_planar_dual_norm(rows, duals[:, None], linear[:, None], one_sided=one_sided, slope=slope)
        enumerated = exact_dual_norm(rows, duals, linear, one_sided=one_sided, slope=slope)
        assert swept == pytest.approx(enumerated, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("num_outputs", [1, 2, 4])
def test_planar_sweep_is_the_maximum_over_a_fine_grid(num_outputs: int) -> None:
    generator = np.random.default_rng(num_outputs)
    angles = np.linspace(0.0, 2 * np.pi, 200_001)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for _ in range(3):
        rows, duals = generator.standard_normal((6, 2)), generator.standard_normal((6, num_outputs))
        sampled = float(np.linalg.norm(np.maximum(circle @ rows.T, 0) @ duals, axis=1).max())
        exact = exact_planar_dual_norm(rows, duals)
        largest_slope = float(np.linalg.norm(duals, axis=1) @ np.linalg.norm(rows, axis=1))
        assert sampled <= exact * (1 + 1e-12)
        assert exact <= sampled + largest_slope * 2 * np.pi / 200_000


def test_orthonormal_rows_have_a_closed_form() -> None:
    generator = np.random.default_rng(0)
    rows = np.linalg.qr(generator.standard_normal((6, 6)))[0][:4]
    duals = generator.standard_normal(4)
    closed = max(np.linalg.norm(np.maximum(duals, 0)), np.linalg.norm(np.minimum(duals, 0)))
    assert exact_dual_norm(rows, duals) == pytest.approx(closed, rel=1e-12)


def test_sampling_stays_below_enumeration_and_comes_near() -> None:
    generator = np.random.default_rng(5)
    rows, duals = generator.standard_normal((7, 3)), generator.standard_normal(7)
    exact = exact_dual_norm(rows, duals)
    sampled = sampled_dual_norm(rows, duals[:, None], hidden_widths=[3], slopes=[0.0])
    assert 0.9 * exact <= sampled <= exact * (1 + 1e-12)


@pytest.mark.parametrize("loss", ["squared", "logistic", "huber", "absolute"])
@pytest.mark.parametrize("bias", [False, True])
def test_program_value_is_bounded_by_the_dual_norm_of_a_scaled_residual(loss: str, bias: bool) -> None:
    """Above the dual norm of the zero net's residual the zero net is optimal, below it is not."""
    generator = np.random.default_rng(7)
    inputs, targets = generator.standard_normal((5, 2)), generator.integers(0, 2, 5).astype(float)
    if bias:
        targets = np.array([0.0, 1.0, 0.0, 1.0, 0.5])  # median and mean 1/2: the zero net with its best bias is known
    at_zero = {"squared": 0.5 * np.sum(targets**2), "logistic": 5 * math.log(2), "huber": 0.5 * np.sum(targets**2)}
    residual = {"squared": targets, "huber": targets, "logistic": targets - 0.5}
    if bias:
        residual = dict.fromkeys(residual, targets - 0.5)
        at_zero = {"squared": 0.5 * np.sum((targets - 0.5) ** 2), "logistic": 5 * math.log(2)}
        at_zero["huber"] = at_zero["squared"]
    if loss == "absolute":  # the subgradient at the kink is free: only "large enough beta" can be said
        best = np.sum(np.abs(targets - 0.5)) if bias else np.sum(np.abs(targets))
        assert convex_program_optimum(inputs, targets, loss, 100.0, bias=bias).value == pytest.approx(best, abs=1e-6)
        assert convex_program_optimum(inputs, targets, loss, 1e-3, bias=bias).value < 0.9 * best
        return
    threshold = exact_dual_norm(inputs, residual[loss])
    above = convex_program_optimum(inputs, targets, loss, 1.001 * threshold, bias=bias)
    below = convex_program_optimum(inputs, targets, loss, 0.9 * threshold, bias=bias)
    assert above.value == pytest.approx(at_zero[loss], abs=1e-6)
    assert below.value < at_zero[loss] - 1e-5


def test_leaky_program_with_slope_one_is_linear() -> None:
    generator = np.random.default_rng(8)
    inputs, targets = generator.standard_normal((5, 2)), generator.standard_normal((5, 1))
    leaky = convex_program_optimum(inputs, targets, "squared", 0.3, slope=1.0).value
    assert leaky == pytest.approx(linear_program_optimum(inputs, targets, "squared", 0.3).value, rel=1e-7)


def test_linear_program_of_orthonormal_inputs_thresholds_singular_values() -> None:
    targets = np.random.default_rng(9).standard_normal((4, 3))
    singular = np.linalg.svd(targets, compute_uv=False)
    kept = np.maximum(singular - 0.7, 0.0)
    closed = 0.5 * np.sum((singular - kept) ** 2) + 0.7 * np.sum(kept)
    assert linear_program_optimum(np.eye(4), targets, "squared", 0.7).value == pytest.approx(closed, rel=1e-7)


def test_gated_program_with_disjoint_gates_splits() -> None:
    generator = np.random.default_rng(10)
    inputs, classes = generator.standard_normal((6, 2)), np.eye(3)[[0, 1, 2, 0, 1, 2]]
    masks = np.array([[1.0, 1, 1, 0, 0, 0], [0.0, 0, 0, 1, 1, 1]])
    together = gated_program_optimum(inputs, classes, masks, "softmax", 0.2).value
    apart = sum(
        linear_program_optimum(inputs[half], classes[half], "softmax", 0.2).value for half in (slice(0, 3), slice(3, 6))
    )
    assert together == pytest.approx(apart, rel=1e-6)
