from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torch_strongdual.certification import TrainingProblem
from torch_strongdual.certification._dual.proven_points import ProvenPoint, ProvenPoints, combined
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import ParallelNet


def make_problem(
    seed: int = 0, *, loss: nn.Module | None = None, output_bias: bool = False, path_decay: float = 2.0
) -> TrainingProblem:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    targets = torch.randn(6, 1, generator=generator, dtype=torch.float64)
    if isinstance(loss, nn.BCEWithLogitsLoss):
        targets = (targets > 0).double()
    layers = nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=output_bias)
    net = ParallelNet(*layers, num_branches=2, dtype=torch.float64)
    return TrainingProblem.from_model(net, inputs, targets, loss=loss or HalfSquaredLoss(), path_decay=path_decay)


def dual_norm(problem: TrainingProblem, point: Tensor) -> float:
    """Exact in the plane: extreme directions are those of the linear pieces' gradients and the kinks."""
    matrix, best = problem.inputs, 0.0
    kinks = torch.atan2(matrix[:, 1], matrix[:, 0])
    edges = torch.sort(torch.cat([kinks + math.pi / 2, kinks - math.pi / 2]) % (2 * math.pi)).values
    middles = 0.5 * (edges + torch.cat([edges[1:], edges[:1] + 2 * math.pi]))
    for angle in torch.cat([edges, middles]).tolist():
        active = (matrix @ torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64) > 0).double()
        gradient = matrix.T @ (active[:, None] * point)[:, 0]
        for vector in (gradient, torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)):
            length = float(vector.norm())
            if length > 0:
                value = float(((matrix @ vector / length).relu() @ point).abs())
                best = max(best, value)
    return best


def proven(problem: TrainingProblem, candidate: Tensor, factor: float = 1.0) -> ProvenPoint:
    upper = factor * dual_norm(problem, candidate) * (1 + 1e-12)
    return ProvenPoint(candidate=candidate, dual_norm_upper=upper, source=f"{factor}", oracle="exact")


def random_point(seed: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(6, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 10_000), min_size=1, max_size=5, unique=True),
    weights=st.lists(st.floats(0, 4), min_size=5, max_size=5),
    exponent=st.integers(-120, 120),
)
def test_a_combination_is_never_below_its_dual_norm(seeds: list[int], weights: list[float], exponent: int) -> None:
    problem = make_problem()
    points = [proven(problem, random_point(seed, 10.0**exponent)) for seed in seeds]
    parts = list(zip(weights, points, strict=False))
    found = combined(problem, parts)
    exact = sum(weight * point.candidate for weight, point in parts)
    assert isinstance(exact, Tensor)
    assert found.dual_norm_upper * (1 + 1e-12) >= dual_norm(problem, found.candidate)
    torch.testing.assert_close(found.candidate, exact)


def test_rounding_of_a_sum_that_cancels_is_allowed_for() -> None:
    problem = make_problem()
    first = random_point(0)
    second = -first * (1 + 1e-9)
    parts = [(1.0, proven(problem, first)), (1.0, proven(problem, second))]
    alone = sum(point.dual_norm_upper for _, point in parts)
    assert combined(problem, parts).dual_norm_upper > alone


@pytest.mark.parametrize("loss", [HalfSquaredLoss(), nn.HuberLoss(), nn.BCEWithLogitsLoss()])
@pytest.mark.parametrize("output_bias", [False, True])
def test_the_best_combination_proves_no_less_than_its_points(loss: nn.Module, output_bias: bool) -> None:
    problem = make_problem(loss=loss, output_bias=output_bias)
    points, values = ProvenPoints(), []
    for seed in range(4):
        # Residuals of arbitrary outputs, with bounds of different quality.
        candidate = problem.dual_candidate(0.3 * random_point(seed))
        point = proven(problem, candidate, 1.0 + 0.02 * seed)
        points.add(point)
        values.append(problem.scaled_bound(candidate, point.dual_norm_upper).value)
    found = points.best_combination(problem)
    assert found is not None
    bound = problem.scaled_bound(found.candidate, found.dual_norm_upper)
    assert bound.value >= max(values) * (1 - 1e-9)
    assert bound.dual_point is not None
    assert dual_norm(problem, bound.dual_point) <= problem.path_decay


def opposite_points(problem: TrainingProblem) -> list[ProvenPoint]:
    """Two points whose faults cancel."""
    fault = random_point(1)
    fault = 0.6 * fault * problem.loss.targets.norm() / fault.norm()
    return [proven(problem, problem.loss.targets + sign * fault) for sign in (1.0, -1.0)]


def test_points_whose_faults_cancel_prove_more_together() -> None:
    problem = make_problem()
    points, values = ProvenPoints(), []
    for point in opposite_points(problem):
        points.add(point)
        values.append(problem.scaled_bound(point.candidate, point.dual_norm_upper).value)
    found = points.best_combination(problem)
    assert found is not None
    assert problem.scaled_bound(found.candidate, found.dual_norm_upper).value > 1.05 * max(values)


def test_one_point_is_no_combination() -> None:
    problem, points = make_problem(), ProvenPoints()
    points.add(proven(problem, random_point(0)))
    assert points.best_combination(problem) is None


def test_memory_is_bounded_and_unproven_points_are_not_kept() -> None:
    problem, points = make_problem(), ProvenPoints()
    points.add(ProvenPoint(candidate=random_point(0), dual_norm_upper=math.inf, source="", oracle=""))
    assert len(points) == 0
    for seed in range(40):
        points.add(proven(problem, random_point(seed)))
    assert len(points) == 8


def test_a_point_bounded_again_keeps_the_smaller_bound() -> None:
    problem, points = make_problem(), ProvenPoints()
    for factor in (1.5, 1.1, 1.3):
        points.add(proven(problem, random_point(0), factor))
    (kept,) = points.state()
    assert kept["source"] == "1.1"


def test_state_round_trip() -> None:
    problem, points = make_problem(), ProvenPoints()
    for point in opposite_points(problem):
        points.add(point)
    restored = ProvenPoints.from_state(points.state())
    first, second = points.best_combination(problem), restored.best_combination(problem)
    assert first is not None
    assert second is not None
    assert torch.equal(first.candidate, second.candidate)
    assert first.dual_norm_upper == second.dual_norm_upper
