"""Each proof of feasibility against exactly known dual norms: never true below them, true just above, never wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tests.references.conjugates import HuberReference, LogisticReference, SoftmaxReference
from tests.references.enumeration import exact_dual_norm
from tests.references.planar import exact_planar_dual_norm
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.verification._cone_proof import cone_feasibility
from torch_strongdual.certification.verification._exact_dual import exact_dual
from torch_strongdual.certification.verification._plane_proof import plane_feasibility
from torch_strongdual.certification.verification._reduced_rows import ReducedRows
from torch_strongdual.certification.verification._spectral_proof import root_up, spectral_feasibility

FloatArray = NDArray[np.float64]


def numbers(generator: np.random.Generator, n: int, m: int, degenerate: bool) -> FloatArray:
    if degenerate:
        return generator.integers(-2, 3, (n, m)).astype(np.float64)
    return generator.standard_normal((n, m))


def square(value: float) -> Fraction:
    return Fraction(max(value, 0.0)) ** 2


@pytest.mark.parametrize("slope", [0.0, 0.2, -0.5, 2.0])
@pytest.mark.parametrize("degenerate", [False, True])
def test_the_sweep_encloses_the_planar_dual_norm(slope: float, degenerate: bool) -> None:
    for seed in range(60):
        generator = np.random.default_rng(seed)
        n, c = int(generator.integers(1, 10)), int(generator.integers(1, 4))
        rows, duals = numbers(generator, n, 2, degenerate), numbers(generator, n, c, degenerate)
        if seed % 4 == 0:
            rows[:, 1] = 3.0 * rows[:, 0]  # parallel rows: arcs of half a turn
        if seed % 5 == 0:
            rows[-1] = -0.1 * rows[0]
        truth = exact_planar_dual_norm(rows, duals, slope=slope)
        error = 1e-13 * float(np.linalg.norm(rows) * np.linalg.norm(duals))

        def holds(limit: float) -> bool | None:
            return plane_feasibility(rows, duals, slope, Decimal(0), square(limit)).holds  # noqa: B023

        assert holds(truth + error + 1e-300) is True
        assert holds(truth - error) is (False if truth > error else holds(0.0))
        assert holds(truth * (1 - 1e-9) - error) is not True or truth == 0.0
        found = plane_feasibility(rows, duals, slope, Decimal(0), square(2 * truth + 1.0))
        assert truth - error <= found.upper <= truth + error


@pytest.mark.parametrize("slope", [0.0, 0.2, -0.5])
@pytest.mark.parametrize("degenerate", [False, True])
def test_the_cones_agree_with_complete_enumeration(slope: float, degenerate: bool) -> None:
    for seed in range(6):
        generator = np.random.default_rng(seed)
        rows, duals = numbers(generator, 6, 3, degenerate), numbers(generator, 6, 1, degenerate)
        truth = exact_dual_norm(rows, duals[:, 0], slope=slope)
        assert cone_feasibility(rows, duals, slope, truth * 1.003, Deadline(20.0)).holds is True
        for share in (0.97, 1 - 1e-6, 1 - 1e-12):
            assert cone_feasibility(rows, duals, slope, truth * share, Deadline(0.2)).holds is not True
        assert cone_feasibility(rows, duals, slope, truth * 0.9, Deadline(20.0)).holds is False


def test_cones_with_several_outputs_agree_with_the_sweep() -> None:
    for seed in range(6):
        generator = np.random.default_rng(seed)
        rows, duals = generator.standard_normal((8, 2)), generator.standard_normal((8, 3))
        truth = exact_planar_dual_norm(rows, duals)
        assert cone_feasibility(rows, duals, 0.0, truth * 1.001, Deadline(20.0)).holds is True
        for share in (0.97, 1 - 1e-6, 1 - 1e-12):
            assert cone_feasibility(rows, duals, 0.0, truth * share, Deadline(0.2)).holds is not True


def test_cones_do_not_depend_on_units() -> None:
    generator = np.random.default_rng(0)
    rows, duals = generator.standard_normal((8, 3)), generator.standard_normal((8, 1))
    truth = exact_dual_norm(rows, duals[:, 0])
    for first, second in ((2.0**-400, 2.0**-400), (2.0**400, 2.0**400), (2.0**-500, 2.0**500)):
        limit = truth * first * second
        assert cone_feasibility(first * rows, second * duals, 0.0, 1.01 * limit, Deadline(20.0)).holds is True
        assert cone_feasibility(first * rows, second * duals, 0.0, 0.9 * limit, Deadline(20.0)).holds is False


def test_minors_decide_spectral_norms_to_the_last_digit() -> None:
    for seed in range(40):
        generator = np.random.default_rng(seed)
        n, d, c = (int(generator.integers(1, 7)) for _ in range(3))
        matrix, duals = numbers(generator, n, d, seed % 2 == 0), numbers(generator, n, c, seed % 2 == 0)
        masks = generator.integers(0, 2, (3, n)).astype(np.float64)
        truth = max(float(np.linalg.norm((matrix * mask[:, None]).T @ duals, 2)) for mask in masks)
        error = 1e-14 * float(np.linalg.norm(matrix) * np.linalg.norm(duals))
        found = spectral_feasibility(matrix, duals, masks, square(truth + error))
        assert found.holds is True
        assert truth - error <= found.upper <= truth + error
        if truth > error:
            assert spectral_feasibility(matrix, duals, masks, square(truth - error)).holds is False


def test_an_exactly_attained_limit_holds() -> None:
    matrix, duals = np.array([[3.0, 0.0], [0.0, 4.0]]), np.ones((2, 1))
    assert spectral_feasibility(matrix, duals, None, Fraction(25)).holds is True
    assert spectral_feasibility(matrix, duals, None, Fraction(25) - Fraction(1, 10**40)).holds is False


@pytest.mark.parametrize("value", [0.0, 5e-324, 1e-170, 0.5, 2.0, 1e160, 1.7e308])
def test_roots_are_rounded_up(value: float) -> None:
    assert value <= root_up(square(value)) <= value * (1 + 1e-15) + 1e-323
    assert root_up(Fraction(10) ** 700) == math.inf


def test_reduction_loses_what_it_says() -> None:
    generator = np.random.default_rng(0)
    exact = generator.standard_normal((9, 2)) @ generator.standard_normal((2, 6))
    matrix = exact + 1e-17 * generator.standard_normal(exact.shape)
    reduced = ReducedRows.of(matrix)
    assert reduced is not None
    assert reduced.rows.shape == (9, 2)
    assert all(0 < loss < 1e-14 for loss in reduced.row_losses)
    np.testing.assert_allclose(reduced.rows @ reduced.rows.T, matrix @ matrix.T, atol=1e-13)
    whole = ReducedRows.of(generator.standard_normal((9, 3)))
    assert whole is not None
    assert not any(whole.row_losses)


GENERATOR = np.random.default_rng(1)
TARGETS, POINT = GENERATOR.standard_normal((5, 2)), 0.04 * GENERATOR.standard_normal((5, 2))
SOFT = 1 / (1 + np.exp(-TARGETS))
ROW_SUMS = np.array([[0.25, -0.25], [0.0, 0.0], [-0.0625, 0.0625], [0.125, -0.125], [0.2, -0.2]]) / 8
CASES: dict[str, tuple[nn.Module, FloatArray, FloatArray, Callable[[FloatArray], object]]] = {
    "squared": (nn.MSELoss(), TARGETS, POINT, HuberReference(TARGETS, 10.0, 0.5, math.inf).dual),
    "huber": (nn.HuberLoss(delta=0.7), TARGETS, POINT, HuberReference(TARGETS, 10.0, 1.0, 0.7).dual),
    "smooth": (nn.SmoothL1Loss(beta=0.3, reduction="sum"), TARGETS, POINT, HuberReference(TARGETS, 1.0, 0.3, 1.0).dual),
    "absolute": (nn.L1Loss(), TARGETS, POINT, HuberReference(TARGETS, 10.0, 0.0, 1.0).dual),
    "logistic": (nn.BCEWithLogitsLoss(), SOFT, 0.1 * POINT, LogisticReference(SOFT, 1 - SOFT, 10.0).dual),
    "softmax": (nn.CrossEntropyLoss(), np.stack([SOFT[:, 0], 1 - SOFT[:, 0]], 1), ROW_SUMS, lambda point: SoftmaxReference(
        np.stack([SOFT[:, 0], 1 - SOFT[:, 0]], 1), 5.0).dual(point)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_dual_objectives_agree_with_the_reference_to_forty_digits(name: str) -> None:
    loss, targets, point, reference = CASES[name]
    for factor in (1.0, 0.5, 100.0):
        found, expected = exact_dual(loss, torch.from_numpy(targets), factor * point), reference(factor * point)
        assert bool(found.flaw) == (expected is None)
        if expected is not None:
            assert abs(found.lower - Fraction(Decimal(str(expected)))) < Fraction(1, 10**40)
            assert found.upper - found.lower < Fraction(1, 10**80)
