from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles._direction_cones import DirectionBound, OutputsBound, bound_over_directions

FloatArray = NDArray[np.float64]


def bound_points(points: FloatArray, *, rtol: float = 1e-2, max_directions: int = 64, excess: float = 1.0) -> OutputsBound:
    """Bound the largest norm among ``points`` from exact support functions, or from ones that are too large."""

    def along(direction: FloatArray, _: Deadline) -> DirectionBound:
        values = np.abs(points @ direction)
        return DirectionBound(upper=excess * float(values.max()) * (1 + 1e-15), images=points[[int(values.argmax())]])

    return bound_over_directions(
        along,
        points.shape[1],
        images=np.zeros((0, points.shape[1])),
        enough=0.0,
        rtol=rtol,
        deadline=Deadline(),
        max_directions=max_directions,
    )


def drawn(seed: int, num_outputs: int) -> FloatArray:
    generator = np.random.default_rng([seed, num_outputs])
    decay = 1.0 / (1.0 + np.arange(num_outputs)) ** (seed % 3)
    return np.asarray(generator.standard_normal((30, num_outputs)) * decay * 10.0 ** generator.uniform(-3, 3))


class TestSoundness:
    @pytest.mark.parametrize("num_outputs", [1, 2, 3, 5])
    @pytest.mark.parametrize("max_directions", [1, 5, 9, 64])
    def test_the_largest_norm_is_never_undercut(self, num_outputs: int, max_directions: int) -> None:
        for seed in range(5):
            points = drawn(seed, num_outputs)
            truth = float(np.linalg.norm(points, axis=1).max())
            found = bound_points(points, rtol=0.0, max_directions=min(max_directions, 8 * num_outputs))
            assert truth * (1 - 1e-15) <= found.upper <= math.sqrt(num_outputs) * truth * (1 + 1e-9)

    def test_a_single_point_on_an_axis(self) -> None:
        assert 5.0 <= bound_points(np.array([[5.0, 0.0, 0.0]])).upper <= 5.0 * (1 + 1e-12)

    def test_a_direction_without_bound_leaves_none(self) -> None:
        assert bound_points(np.array([[1.0, 2.0]]), excess=math.inf).upper == math.inf

    def test_useless_bounds_of_later_directions_do_no_harm(self) -> None:
        points = drawn(0, 3)
        truth = float(np.linalg.norm(points, axis=1).max())
        asked: list[FloatArray] = []

        def along(direction: FloatArray, _: Deadline) -> DirectionBound:
            asked.append(direction)
            excess = 1.0 if len(asked) <= 3 else 50.0  # as where time runs out
            return DirectionBound(upper=excess * float(np.abs(points @ direction).max()) * (1 + 1e-15), images=points[:0])

        found = bound_over_directions(
            along, 3, images=np.zeros((0, 3)), enough=0.0, rtol=1e-2, deadline=Deadline(), max_directions=9
        )
        assert len(asked) == 9
        along_axes = float(np.linalg.norm(np.abs(points).max(axis=0)))
        assert truth * (1 - 1e-15) <= found.upper <= along_axes * (1 + 1e-9)

    @pytest.mark.parametrize("size", [1e-150, 1e-30, 1e30, 1e150])
    def test_magnitudes(self, size: float) -> None:
        found = bound_points(size * np.array([[3.0, 4.0], [0.0, 1.0]]))
        assert 5.0 * size * (1 - 1e-15) <= found.upper <= 5.05 * size


class TestTightness:
    @pytest.mark.parametrize("num_outputs", [2, 3, 4, 6])
    def test_few_directions_suffice(self, num_outputs: int) -> None:
        for seed in range(3):
            points = drawn(seed, num_outputs)
            found = bound_points(points)
            assert found.upper <= 1.01 * float(np.linalg.norm(points, axis=1).max()) * (1 + 1e-12)
            assert found.num_directions <= 8 * num_outputs

    def test_the_axes_alone_are_added_in_squares(self) -> None:
        points = np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]])
        assert bound_points(points, max_directions=3).upper == pytest.approx(3.0, rel=1e-9)
        assert bound_points(points).upper == pytest.approx(2.0, rel=2e-2)

    def test_very_many_outputs_stay_with_the_axes(self) -> None:
        assert bound_points(np.eye(15)).num_directions == 15
        assert bound_points(np.eye(15)).upper == pytest.approx(math.sqrt(15), rel=1e-9)
