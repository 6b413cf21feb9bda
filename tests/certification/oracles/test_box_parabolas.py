"""The quadratic bound of a box against values of the function in it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from tests._compiled_entry import callable_part
from torch_strongdual.certification.oracles._boxes._parabolas_kernel import answer_negative, answer_positive
from torch_strongdual.certification.oracles._boxes._quadratic_kernel import inherit_law, quadratic_excess
from torch_strongdual.certification.oracles._boxes._rows_kernel import fill_lanes, fill_lanes_by_sign
from torch_strongdual.certification.oracles._boxes.scratch import CellScratch

FloatArray = NDArray[np.float64]

_inherit_law, _fill_lanes, _quadratic_excess = (callable_part(part) for part in (inherit_law, fill_lanes, quadratic_excess))
_fill_lanes_by_sign = callable_part(fill_lanes_by_sign)
positive_answers, negative_answers = callable_part(answer_positive), callable_part(answer_negative)


def excess_of(rows: FloatArray, duals: FloatArray, centre: FloatArray, width: FloatArray, bound: float) -> float:
    """As the search calls it, for one box without a history."""
    r = rows.shape[1]
    middle, reach = rows @ centre, np.abs(rows) @ width
    undecided = np.flatnonzero(np.abs(middle) < reach).astype(np.uint32)
    form = duals[middle >= reach] @ rows[middle >= reach]
    mean, cov, weights = np.zeros((1, r)), np.zeros((1, r, r)), np.zeros((1, r))
    _inherit_law(0, 0, 1.0, int(np.argmin(width)), mean, cov, weights)
    undecided = undecided[np.argsort(duals[undecided] <= 0.0, kind="stable")]
    scratch = CellScratch.of(r, len(rows))
    front, size = _fill_lanes(
        rows.astype(np.float32),
        undecided,
        duals[undecided],
        middle[undecided],
        reach[undecided],
        int((duals[undecided] > 0.0).sum()),
        scratch.near,
        scratch.single,
    )
    return float(
        _quadratic_excess(
            scratch.near, *scratch.single[:, :size], front,
            float(form @ centre), form, centre, width, bound, 0.0, int(np.argmin(width)), mean[0], cov[0], weights[0],
            scratch.gradient, scratch.hessian, scratch.vectors, scratch.small, scratch.lines, scratch.constants,
        )
    )  # fmt: skip


def largest_in_box(
    rows: FloatArray, duals: FloatArray, centre: FloatArray, width: FloatArray, bound: float, generator: np.random.Generator
) -> float:
    """The largest value found at corners, inside, and by a walk from the best of them: never above the truth."""
    corners = centre + width * np.array(list(itertools.product((-1.0, 1.0), repeat=len(centre))))
    inside = centre + width * generator.uniform(-1.0, 1.0, (300, len(centre)))

    def values(points: FloatArray) -> FloatArray:
        found: FloatArray = np.maximum(points @ rows.T, 0.0) @ duals - bound * np.linalg.norm(points, axis=1)
        return found

    points = np.concatenate([corners, inside, centre[None]])
    points = points[np.argsort(-values(points))[:20]]
    step = 0.3
    for _ in range(60):
        moved = np.clip(points + step * width * generator.standard_normal(points.shape), centre - width, centre + width)
        points = np.where((values(moved) > values(points))[:, None], moved, points)
        step *= 0.92
    return float(values(points).max())


@pytest.mark.parametrize("rank", [2, 4, 7])
def test_never_below_a_value_in_the_box(rank: int) -> None:
    generator = np.random.default_rng(rank)
    finite = 0
    for _ in range(150):
        number = int(generator.integers(1, 40))
        rows, duals = generator.standard_normal((number, rank)), generator.standard_normal(number)
        centre, width = generator.uniform(-1.0, 1.0, rank), generator.uniform(0.01, 1.0, rank) ** 2
        face = int(generator.integers(rank))
        centre[face], width[face] = generator.choice([-1.0, 1.0]), 0.0
        bound = float(generator.uniform(0.5, 30.0))
        truth = largest_in_box(rows, duals, centre, width, bound, generator)
        excess = excess_of(rows, duals, centre, width, bound)
        assert excess >= truth - 1e-12 * bound
        finite += excess < math.inf
        if truth > 1e-9:
            assert excess > 0.0
    assert finite > 30


def test_a_small_box_is_proven_to_second_order() -> None:
    """Halving a box quarters what its bound loses, so that few boxes are needed near a maximum."""
    generator = np.random.default_rng(0)
    rows, duals = generator.standard_normal((300, 5)), generator.standard_normal(300)
    centre = np.array([1.0, 0.2, -0.3, 0.1, 0.4])
    losses = []
    for size in (0.08, 0.04, 0.02):
        width = np.array([0.0, size, size, size, size])
        bound = 200.0
        losses.append(
            excess_of(rows, duals, centre, width, bound) - largest_in_box(rows, duals, centre, width, bound, generator)
        )
    assert losses[0] > 0.0
    assert losses[1] < 0.4 * losses[0]
    assert losses[2] < 0.4 * losses[1]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("size", [1.0, 1e-12, 1e6])
def test_parabolas_of_single_precision_err_by_no_more_than_is_allowed_for(sign: float, size: float) -> None:
    """A row may be off by 40 roundings of its magnitude and range (docs/rounding.md): against all extremes."""
    generator = np.random.default_rng(7)
    count = 3000
    reach = (size * generator.uniform(0.5, 1.0, count) * 10.0 ** generator.uniform(0, 3, count)).astype(np.float32)
    share = np.where(
        generator.random(count) < 0.5, generator.uniform(-1, 1, count), 1 - 10.0 ** generator.uniform(-7, 0, count)
    )
    middle = (reach * share * generator.choice([-1, 1], count)).astype(np.float32)
    means = (reach * generator.uniform(-1, 1, count)).astype(np.float32)
    variances = (reach**2 * generator.uniform(0, 1, count) ** 4).astype(np.float32)
    worst = 0.0
    for row in range(count):
        arrays = [np.array([value], dtype=np.float32) for value in (middle[row], reach[row], 0.5 / reach[row], sign)]
        mean, variance, constants = means[row : row + 1].copy(), variances[row : row + 1].copy(), np.zeros(3)
        answers = positive_answers if sign > 0 else negative_answers
        answers(*arrays, mean, variance, np.zeros(1, dtype=np.float32), constants)
        t, rho = float(middle[row]), float(reach[row])
        c0, c1, c2 = float(constants[0]) * sign, float(mean[0]) * sign, 0.5 * float(variance[0]) * sign
        at = [-rho, rho, -t] + ([-c1 / (2 * c2), (1 - c1) / (2 * c2)] if c2 > 0 else [])
        points = np.clip(np.array(at), -rho, rho)
        short = sign * (np.maximum(t + points, 0.0) - c0 - c1 * points - c2 * points**2)
        worst = max(worst, float(short.max()) / (abs(c0) + abs(c1) * rho + c2 * rho**2 + rho))
        assert abs(constants[2] - (abs(c0) + abs(c1) * rho + c2 * rho**2)) <= 1e-5 * constants[2] + 1e-30
    assert worst <= 40 * 2.0**-24


def test_bounds_hold_where_single_precision_underflows() -> None:
    generator = np.random.default_rng(8)
    for exponent in (-8, -14, -25, -45):
        for _ in range(10):
            rows, duals = generator.standard_normal((40, 5)), generator.standard_normal(40)
            centre, width = generator.uniform(-1, 1, 5), np.full(5, 10.0**exponent)
            centre[0], width[0] = 1.0, 0.0
            rows[:20] -= np.outer(rows[:20] @ centre, centre) / (centre @ centre)  # kinks through the centre
            values = float(np.maximum(rows @ centre, 0.0) @ duals / np.linalg.norm(centre))
            excess = excess_of(rows, duals, centre, width, values * (1 - 1e-9) if values > 0 else values * (1 + 1e-9) - 1e-9)
            assert not excess <= 0.0


@pytest.mark.parametrize(("positive", "others"), [(0, 5), (5, 0), (32, 33), (70, 1)])
def test_lanes_are_filled_alike_from_sorted_and_from_mixed_rows(positive: int, others: int) -> None:
    generator = np.random.default_rng(positive)
    count = positive + others
    rows = generator.standard_normal((count, 3))
    duals = np.concatenate([generator.uniform(0.1, 1.0, positive), -generator.uniform(0.1, 1.0, others)])
    middle, reach = generator.standard_normal(count), generator.uniform(1.0, 2.0, count)
    scratch, mixed = CellScratch.of(3, count), CellScratch.of(3, count)
    every = np.arange(count, dtype=np.uint32)
    found = _fill_lanes(rows.astype(np.float32), every, duals, middle, reach, positive, scratch.near, scratch.single)
    # Each sign in its order, the two mingled
    order = np.argsort(np.where(duals > 0.0, every, every - positive) + 0.5 * (duals <= 0.0), kind="stable")
    gathered, places = np.ascontiguousarray(rows[order].T), np.zeros(count, dtype=np.uint32)
    values = duals[order], middle[order], reach[order]
    assert _fill_lanes_by_sign(gathered, *values, mixed.near, mixed.single, places) == found
    start, size = found
    assert start % 32 == size % 32 == 0
    assert np.array_equal(scratch.near[:, :size], mixed.near[:, :size])
    assert np.array_equal(scratch.single[:, :size], mixed.single[:, :size])
    assert (scratch.single[0, :size] > 0.0).sum() == positive
    assert not scratch.near[:, positive:start].any()
