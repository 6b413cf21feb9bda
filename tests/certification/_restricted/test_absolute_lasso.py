from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.certification import Deadline, TrainingProblem
from torch_strongdual.certification._restricted import restricted_primal
from torch_strongdual.certification._restricted.absolute_lasso import solve_absolute_lasso
from torch_strongdual.certification._restricted.cone_program import solve_cone_program
from torch_strongdual.certification._restricted.program_data import ProgramData
from torch_strongdual.certification._restricted.restricted_primal import solve_restricted_primal
from torch_strongdual.nn import ParallelNet


def pose(
    num_samples: int, num_atoms: int, num_outputs: int, *, bias: bool, fraction: float, seed: int = 0, kind: str = "gauss"
) -> tuple[TrainingProblem, Tensor]:
    """Random atoms and targets; the strength is a fraction of that at which no atom is used."""
    torch.manual_seed(seed)
    inputs = torch.randn(num_samples, 4, dtype=torch.float64)
    targets = torch.randn(num_samples, num_outputs, dtype=torch.float64)
    if kind == "repeated":
        inputs, targets = inputs[torch.arange(num_samples) // 3], targets.round()
    elif kind == "heavy":
        targets = 1e6 * targets / torch.randn(num_samples, num_outputs, dtype=torch.float64).abs()
    net = ParallelNet(
        nn.Linear(4, 1, bias=False), nn.ReLU(), nn.Linear(1, num_outputs, bias=bias), num_branches=1, dtype=torch.float64
    )
    atoms = torch.relu(inputs @ torch.randn(4, num_atoms, dtype=torch.float64))
    draft = TrainingProblem.from_model(net, inputs, targets, loss=nn.L1Loss(), path_decay=1.0)
    largest = torch.linalg.vector_norm(atoms.T @ draft.dual_candidate(draft.null_outputs()), dim=1).max()
    return TrainingProblem.from_model(net, inputs, targets, loss=nn.L1Loss(), path_decay=fraction * float(largest)), atoms


def attained(problem: TrainingProblem, atoms: Tensor, coefficients: Tensor) -> float:
    outputs = problem.with_fitted_bias(atoms @ coefficients)
    return float(problem.loss.value(outputs)) + problem.path_decay * float(torch.linalg.vector_norm(coefficients, dim=1).sum())


@pytest.mark.parametrize("kind", ["gauss", "repeated", "heavy"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_it_agrees_with_the_cone_program_and_closes_its_own_gap(
    num_outputs: int, bias: bool, fraction: float, kind: str
) -> None:
    problem, atoms = pose(60, 25, num_outputs, bias=bias, fraction=fraction, kind=kind)
    start = torch.zeros(25, num_outputs, dtype=torch.float64)
    data = ProgramData.of(problem, atoms)
    by_cones = solve_cone_program(data).coefficients
    found = solve_absolute_lasso(data, start, rtol=1e-7, deadline=Deadline(60.0), max_iterations=100_000)
    assert found.relative_gap <= 1e-7
    objective = attained(problem, atoms, found.coefficients)
    assert objective == pytest.approx(attained(problem, atoms, by_cones), rel=1e-6)
    steepest = float(torch.linalg.vector_norm(atoms.T @ found.multipliers, dim=1).max())
    assert steepest <= problem.dual_norm_limit * (1 + 1e-12)
    assert problem.loss.dual_objective(found.multipliers) == pytest.approx(objective, rel=2e-7)
    if bias:
        assert float(found.multipliers.sum(dim=0).abs().max()) <= 1e-12 * float(found.multipliers.abs().max()) * 60


def test_a_good_start_and_no_time_are_enough_for_a_feasible_answer() -> None:
    problem, atoms = pose(40, 12, 2, bias=False, fraction=0.1)
    data, nothing = ProgramData.of(problem, atoms), torch.zeros(12, 2, dtype=torch.float64)
    best = solve_absolute_lasso(data, nothing, rtol=1e-9, deadline=Deadline(30.0))
    without_time = solve_absolute_lasso(data, best.coefficients, rtol=1e-12, deadline=Deadline(0.0))
    torch.testing.assert_close(without_time.coefficients, best.coefficients)
    assert float(torch.linalg.vector_norm(atoms.T @ without_time.multipliers, dim=1).max()) <= problem.dual_norm_limit


@pytest.mark.parametrize("num_outputs", [1, 2])
def test_it_is_for_large_programs(monkeypatch: pytest.MonkeyPatch, num_outputs: int) -> None:
    problem, atoms = pose(40, 30, num_outputs, bias=True, fraction=0.1)
    start = torch.zeros(30, num_outputs, dtype=torch.float64)
    small = solve_restricted_primal(problem, atoms, start, rtol=1e-8, deadline=Deadline(30.0))
    monkeypatch.setattr(restricted_primal, "_LARGEST_ABSOLUTE", 1000)
    large = solve_restricted_primal(problem, atoms, start, rtol=1e-8, deadline=Deadline(30.0))
    assert (small.solver, large.solver) == ("cone program", "alternating directions")
    assert large.objective == pytest.approx(small.objective, rel=1e-7)


def test_it_makes_tensors_where_its_data_are() -> None:
    """A tensor without a device would be one of the default device, here one without numbers."""
    problem, atoms = pose(30, 10, 2, bias=True, fraction=0.1)
    data, start = ProgramData.of(problem, atoms), torch.zeros(10, 2, dtype=torch.float64)
    with torch.device("meta"):
        found = solve_absolute_lasso(data, start, rtol=1e-8, deadline=Deadline(30.0))
    assert found.relative_gap <= 1e-8
