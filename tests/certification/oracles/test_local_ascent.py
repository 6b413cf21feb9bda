from __future__ import annotations

import numpy as np
import pytest

from tests.references.enumeration import exact_dual_norm
from tests.references.planar import exact_planar_dual_norm
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles import local_ascent
from torch_strongdual.certification.oracles.local_ascent import local_maxima
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem

ACCURACY = 1e-4  # a tenth of the gap of 1e-3 that the callers go for; nothing is promised in writing


def random_problem(
    seed: int, rank: int, num_outputs: int, *, one_sided: bool = False, with_linear: bool = False
) -> SphereProblem:
    generator = np.random.default_rng(seed)
    linear = generator.standard_normal((rank, num_outputs)) if with_linear else np.zeros((rank, num_outputs))
    return SphereProblem(
        rows=generator.standard_normal((8, rank)),
        duals=generator.standard_normal((8, num_outputs)),
        linear=linear,
        one_sided=one_sided,
    )


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("with_linear", [False, True])
def test_one_sided_maximum_is_found_and_never_exceeded(rank: int, with_linear: bool) -> None:
    for seed in range(6):
        problem = random_problem(seed, rank, 1, one_sided=True, with_linear=with_linear)
        truth = exact_dual_norm(problem.rows, problem.duals[:, 0], problem.linear[:, 0], one_sided=True)
        found = float(problem.values(local_maxima(problem)).max(initial=0.0))
        assert found <= truth * (1 + 1e-12) + 1e-14
        assert found >= truth * (1 - ACCURACY)


@pytest.mark.parametrize("num_outputs", [2, 4])
def test_vector_maximum_is_found_and_never_exceeded(num_outputs: int) -> None:
    for seed in range(6):
        problem = random_problem(seed, 2, num_outputs, with_linear=seed % 2 == 1)
        truth = exact_planar_dual_norm(problem.rows, problem.duals, problem.linear)
        found = float(problem.values(local_maxima(problem)).max())
        assert truth * (1 - ACCURACY) <= found <= truth * (1 + 1e-12)


def test_a_maximum_on_a_concave_kink_is_reached() -> None:
    """``3 u_1 - 4 |u_2|`` is largest at (1, 0), where the gradient jumps."""
    rows = np.array([[0.0, 1.0], [0.0, -1.0]])
    problem = SphereProblem(rows=rows, duals=np.full((2, 1), -4.0), linear=np.array([[3.0], [0.5]]), one_sided=True)
    best = local_maxima(problem)[0]
    assert problem.values(best[None])[0] == pytest.approx(3.0, abs=1e-9)


def test_results_are_distinct_unit_vectors_best_first() -> None:
    problem = random_problem(0, 4, 2)
    points = local_maxima(problem, num_kept=5)
    values = problem.values(points)
    assert 1 <= len(points) <= 5
    assert list(values) == sorted(values, reverse=True)
    assert np.allclose(np.linalg.norm(points, axis=1), 1.0, atol=1e-12)
    gram = points @ points.T - np.eye(len(points))
    assert gram.max() < 0.9996


def test_a_start_is_never_lost() -> None:
    problem = random_problem(1, 6, 1, one_sided=True)
    best = local_maxima(problem)[:1]
    again = local_maxima(problem, best, num_starts=0)
    assert problem.values(again)[0] >= problem.values(best)[0]


def test_results_repeat() -> None:
    problem = random_problem(2, 4, 3)
    assert np.array_equal(local_maxima(problem, seed=1), local_maxima(problem, seed=1))


@pytest.mark.parametrize("duals", [0.0, -1.0])
def test_without_a_positive_value_there_are_no_points(duals: float) -> None:
    rows = np.concatenate([np.eye(2), -np.eye(2)])
    problem = SphereProblem(rows=rows, duals=np.full((4, 1), duals), linear=np.zeros((2, 1)), one_sided=True)
    assert local_maxima(problem).shape == (0, 2)


def test_rank_zero_has_no_points() -> None:
    problem = SphereProblem(rows=np.zeros((3, 0)), duals=np.ones((3, 1)), linear=np.zeros((0, 1)))
    assert len(local_maxima(problem)) == 0


def test_time_that_is_over_leaves_feasible_unit_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("an iteration began after the deadline")

    monkeypatch.setattr(local_ascent, "_directions", never)
    problem = random_problem(0, 4, 2)
    points = local_maxima(problem, deadline=Deadline(0.0))
    assert len(points) >= 1
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1.0, rtol=1e-12)
