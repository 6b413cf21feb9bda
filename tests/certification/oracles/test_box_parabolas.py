"""The quadratic bound of a box against values of the function in it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._boxes._quadratic_kernel import inherit_law, quadratic_excess

FloatArray = NDArray[np.float64]


def excess_of(rows: FloatArray, duals: FloatArray, centre: FloatArray, width: FloatArray, bound: float) -> float:
    """As the search calls it, for one box without a history."""
    r = rows.shape[1]
    middle, reach = rows @ centre, np.abs(rows) @ width
    undecided = np.flatnonzero(np.abs(middle) < reach).astype(np.int32)
    form = duals[middle >= reach] @ rows[middle >= reach]
    mean, cov, weights = np.zeros((1, r)), np.zeros((1, r, r)), np.zeros((1, r))
    inherit_law(0, 0, 1.0, int(np.argmin(width)), mean, cov, weights)
    undecided = undecided[np.argsort(duals[undecided] <= 0.0, kind="stable")]
    return float(
        quadratic_excess(
            np.ascontiguousarray(rows[undecided].T), duals[undecided], middle[undecided], reach[undecided],
            float(form @ centre), form, centre, width, bound, 0.0, int(np.argmin(width)), mean[0], cov[0], weights[0],
            np.zeros(r), np.zeros((r, r)), np.zeros((5, len(rows))), np.zeros((6, r - 1, r - 1)), np.zeros((6, r - 1)),
            np.zeros(3),
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
