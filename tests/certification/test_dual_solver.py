from __future__ import annotations

import importlib
import io
import math
import sys
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests._cpu_clock import count_cpu_time
from tests.references.convex_program import convex_program_optimum
from torch_strongdual.certification import Deadline, DualSolver, TrainingProblem, optimize_to_certificate
from torch_strongdual.certification._restricted.support_polish import polished
from torch_strongdual.certification.oracles import DoublyNonnegativeRelaxation, GatedOracle, QuadraticRelaxation
from torch_strongdual.errors import InvalidInputError, UnsupportedModelError
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import ParallelNet, ParallelWeights


def make_data(num_samples: int = 7, num_inputs: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(num_samples, num_inputs, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(num_samples, 1, generator=generator, dtype=torch.float64)


def make_net(seed: int = 0, num_branches: int = 5) -> ParallelNet:
    torch.manual_seed(seed)
    layers = nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)
    return ParallelNet(*layers, num_branches=num_branches, dtype=torch.float64)


def make_problem(loss: nn.Module | None = None, path_decay: float = 0.4) -> TrainingProblem:
    inputs, targets = make_data()
    loss = HalfSquaredLoss() if loss is None else loss
    return TrainingProblem.from_model(make_net(), inputs, targets, loss=loss, path_decay=path_decay)


def step(solver: DualSolver, net: ParallelNet, rtol: float = 1e-4) -> float:
    certificate = solver.step(ParallelWeights.from_module(net), rtol=rtol, deadline=Deadline(30.0))
    assert certificate.dual_bound == solver.best.value
    return certificate.dual_bound


@pytest.mark.parametrize(("loss", "name"), [(HalfSquaredLoss(), "squared"), (nn.L1Loss(reduction="sum"), "absolute")])
def test_column_generation_reaches_the_optimum_from_any_network(loss: nn.Module, name: str) -> None:
    """The bound is a property of the problem: a random network of five branches is enough to start from."""
    inputs, targets = make_data()
    truth = convex_program_optimum(inputs.numpy(), targets.numpy(), name, 0.4).value
    for seed in range(4):
        bound = step(DualSolver(make_problem(loss)), make_net(seed))
        assert bound <= truth * (1 + 1e-8)
        assert bound >= truth * (1 - 2e-3), (bound, truth)


def test_bound_never_gets_worse() -> None:
    solver = DualSolver(make_problem())
    bounds = [step(solver, make_net(seed, num_branches=1 + seed), rtol=0.3) for seed in range(8)]
    assert bounds == sorted(bounds)
    assert math.isfinite(bounds[0])


def test_attainable_objective_is_above_the_bound_and_below_every_network() -> None:
    solver = DualSolver(make_problem())
    for seed in range(5):
        net = make_net(seed)
        primal = solver.problem.primal(ParallelWeights.from_module(net)).value
        bound = step(solver, net)
        assert bound <= solver.attainable <= primal


def test_a_solved_dual_is_not_solved_again() -> None:
    solver = DualSolver(make_problem())
    first = solver.step(ParallelWeights.from_module(make_net()), rtol=1e-2, deadline=Deadline(30.0))
    second = solver.step(ParallelWeights.from_module(make_net(3)), rtol=1e-2, deadline=Deadline(30.0))
    assert first.stats["rounds"] > 0  # type: ignore[operator]
    assert second.stats["rounds"] == 0
    assert second.dual_bound == first.dual_bound
    assert second.improving_branches


def test_the_restricted_dual_is_a_cone_program_and_reported() -> None:
    solver = DualSolver(make_problem(nn.HuberLoss(reduction="sum")))
    certificate = solver.step(ParallelWeights.from_module(make_net()), rtol=1e-6, deadline=Deadline(60.0))
    assert certificate.stats["restricted_dual_by"] == "cone program"


@pytest.mark.parametrize("path_decay", [0.0, -1.0, math.nan, math.inf])
def test_another_strength_has_to_be_a_positive_number(path_decay: float) -> None:
    with pytest.raises(InvalidInputError, match="path_decay"):
        DualSolver(make_problem()).at_path_decay(path_decay)


def test_dual_point_proves_the_bound() -> None:
    """Recomputed by hand: D(Lam) = <Lam, Y> - |Lam|^2 / 2, and a dense sweep of the circle finds nothing above path_decay."""
    solver = DualSolver(make_problem())
    step(solver, make_net())
    inputs, targets = make_data()
    point = solver.best.dual_point
    assert point is not None
    value = float((point * targets).sum() - 0.5 * (point * point).sum())
    assert value == pytest.approx(solver.best.value, rel=1e-12)
    assert value >= solver.best.value
    angles = torch.linspace(0, 2 * math.pi, 20_001, dtype=torch.float64)
    features = (inputs @ torch.stack([angles.cos(), angles.sin()])).relu()
    largest = float((point.T @ features).abs().max())
    assert largest <= solver.best.dual_norm_upper <= 0.4
    assert solver.best.dual_norm_upper <= largest * (1 + 1e-3)


def test_state_survives_a_weights_only_checkpoint() -> None:
    solver = DualSolver(make_problem())
    bound = step(solver, make_net())
    buffer = io.BytesIO()
    torch.save(solver.state_dict(), buffer)
    buffer.seek(0)
    fresh = DualSolver(make_problem())
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert fresh.best.value == bound
    assert fresh.attainable == solver.attainable
    assert len(fresh.witnesses) == len(solver.witnesses)
    assert len(fresh.state.points) == len(solver.state.points) > 0
    assert fresh.state.joint.is_spent == solver.state.joint.is_spent
    assert fresh.best.dual_point is not None
    assert solver.best.dual_point is not None
    assert torch.equal(fresh.best.dual_point, solver.best.dual_point)
    assert step(fresh, make_net(5)) >= bound


def test_steps_are_deterministic() -> None:
    first, second = (step(DualSolver(make_problem()), make_net(2)) for _ in range(2))
    assert first == second


def trained_on_noise(
    num_samples: int, num_inputs: int, *, seed: int, path_decay: float, **options: Any
) -> tuple[TrainingProblem, ParallelWeights]:
    """A problem whose targets are noise, and a network that is nearly optimal for it."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_samples, num_inputs, generator=generator, dtype=torch.float64)
    targets = torch.randn(num_samples, 1, generator=generator, dtype=torch.float64)
    layers = nn.Linear(num_inputs, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)
    net = ParallelNet(*layers, num_branches=1, dtype=torch.float64)
    net = optimize_to_certificate(net, inputs, targets, loss=HalfSquaredLoss(), path_decay=path_decay, **options).net
    problem = TrainingProblem.from_model(net, inputs, targets, loss=HalfSquaredLoss(), path_decay=path_decay)
    return problem, ParallelWeights.from_module(net)


def test_a_point_chosen_with_its_relaxation_proves_more_where_the_relaxation_is_loose() -> None:
    """Many samples in three dimensions: one relaxation without splitting loses a lot."""
    problem, weights = trained_on_noise(14, 3, seed=0, path_decay=0.5, rtol=1e-2)
    alone = DualSolver(problem, DoublyNonnegativeRelaxation(max_nodes=1))
    alone.state.joint.is_spent = True
    gap = alone.step(weights, rtol=1e-2, deadline=Deadline(60.0), max_rounds=0).relative_gap
    assert gap > 1e-2
    solver = DualSolver(problem, DoublyNonnegativeRelaxation(max_nodes=1))
    solver.state.joint.is_spent, solver.state.joint.worthwhile_from = False, 0.0
    assert solver.step(weights, rtol=0.8 * gap, deadline=Deadline(60.0), max_rounds=0).is_certified


def test_memory_is_bounded_over_many_steps() -> None:
    solver = DualSolver(make_problem())
    for seed in range(12):
        solver.step(ParallelWeights.from_module(make_net(seed)), rtol=1e-3, deadline=Deadline(30.0), max_rounds=1)
    assert len(solver.state.points) <= 8
    assert len(solver.witnesses) <= 256


def test_an_oracle_for_other_branches_is_refused_at_construction() -> None:
    with pytest.raises(UnsupportedModelError, match="GatedOracle cannot certify"):
        DualSolver(make_problem(), GatedOracle())


def test_time_is_kept_with_hundreds_of_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quasi-Newton steps of the restricted dual are long there; their import is not what is tested."""
    importlib.import_module("scipy.optimize")
    count_cpu_time(monkeypatch)
    torch.manual_seed(0)
    layers = nn.Linear(5, 1, bias=False), nn.ReLU(), nn.Linear(1, 5, bias=False)
    net = ParallelNet(*layers, num_branches=800, dtype=torch.float64)
    inputs, targets = torch.randn(300, 5, dtype=torch.float64), torch.randn(300, 5, dtype=torch.float64)
    problem = TrainingProblem.from_model(net, inputs, targets, loss=HalfSquaredLoss(), path_decay=6.0)
    solver = DualSolver(problem)
    solver.prepare()
    begin = time.process_time()
    certificate = solver.step(ParallelWeights.from_module(net), rtol=1e-3, deadline=Deadline(0.8))
    assert time.process_time() - begin <= 0.8 + 0.2
    assert math.isfinite(certificate.dual_bound)
    assert float(certificate.stats["rounds"]) >= 1.0


def test_quasi_newton_steps_need_no_import_without_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "scipy.optimize", raising=False)
    monkeypatch.setattr(sys, "meta_path", [])  # any import would fail
    point = torch.ones(2, 1, dtype=torch.float64)
    found = polished(
        lambda outputs: (0.5 * float(outputs.square().sum()), -outputs),
        torch.eye(2, dtype=torch.float64),
        torch.ones(2, dtype=torch.float64),
        point,
        deadline=Deadline(1.0),
    )
    assert found is point


def test_a_residual_bounded_before_is_not_bounded_afresh() -> None:
    """The second call goes on from what the first proved, and only for the same point."""
    net, solver = make_net(), DualSolver(make_problem())
    candidate = solver.problem.dual_candidate(solver.problem.primal(ParallelWeights.from_module(net)).outputs)
    assert solver.state.known_residual_bound(candidate) is None
    solver.step(ParallelWeights.from_module(net), rtol=1e-3, deadline=Deadline(30.0), max_rounds=0)
    known = solver.state.known_residual_bound(candidate)
    assert known is not None
    assert 0.0 < known.lower <= known.upper < math.inf
    assert solver.state.known_residual_bound(candidate * (1.0 + 2.0**-40)) is None


def test_where_boxes_were_expected_to_do_well_but_do_not_the_joint_dual_has_its_turn() -> None:
    problem, weights = trained_on_noise(60, 8, seed=1, path_decay=1.0, time_budget=2.0)
    alone = DualSolver(problem, QuadraticRelaxation())
    assert alone.state.joint.worthwhile_from > 0.0
    assert not alone.state.joint.is_spent
    alone.state.joint.is_spent = True
    gap = alone.step(weights, rtol=1e-3, deadline=Deadline(60.0), max_rounds=0).relative_gap
    certificate = DualSolver(problem, QuadraticRelaxation()).step(
        weights, rtol=0.9 * gap, deadline=Deadline(60.0), max_rounds=0
    )
    assert certificate.is_certified
    assert "joint dual" in str(certificate.evidence["dual_point_from"])


@pytest.mark.parametrize("other", [make_problem(path_decay=0.3), make_problem(nn.MSELoss())], ids=["strength", "loss"])
def test_a_state_of_another_problem_is_refused(other: TrainingProblem) -> None:
    """Its bound may lie above this one's optimum."""
    solver = DualSolver(make_problem())
    solver.step(ParallelWeights.from_module(make_net()), rtol=1e-2, deadline=Deadline(30.0))
    fresh = DualSolver(other)
    with pytest.raises(InvalidInputError, match="state is of another training problem"):
        fresh.load_state_dict(solver.state_dict())
    assert fresh.best.dual_point is None


def test_inputs_changed_in_place_are_refused() -> None:
    """A bound proven for what they were would stand beside the objective on what they are."""
    inputs, targets = make_data()
    net = make_net()
    problem = TrainingProblem.from_model(net, inputs, targets, loss=HalfSquaredLoss(), path_decay=0.4)
    solver, weights = DualSolver(problem), ParallelWeights.from_module(net)
    solver.step(weights, rtol=1e-2, deadline=Deadline(30.0))
    inputs *= 0.5
    with pytest.raises(InvalidInputError, match="changed in place"):
        solver.step(weights, rtol=1e-2, deadline=Deadline(30.0))
    with pytest.raises(InvalidInputError, match="changed in place"):
        solver.assess(weights, rtol=1e-2)
