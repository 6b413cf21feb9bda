from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.certification import Deadline, TrainingProblem
from torch_strongdual.certification._growth import grown, random_branches
from torch_strongdual.certification._training.cell_program import solved_cone_program
from torch_strongdual.certification._training.cell_refit import has_cells, refitted_in_cells
from torch_strongdual.certification._working_branches import WorkingBranches
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import GatedReLU, ParallelNet

from ...references.convex_program import convex_program_optimum
from ...references.enumeration import enumerate_patterns

LOSSES = {
    "squared": HalfSquaredLoss(),
    "huber": nn.HuberLoss(reduction="sum"),
    "logistic": nn.BCEWithLogitsLoss(reduction="sum"),
}


def data(num_samples: int = 12, num_inputs: int = 2, num_outputs: int = 1, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_samples, num_inputs, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(num_samples, num_outputs, generator=generator, dtype=torch.float64)


def problem_of(
    inputs: Tensor, targets: Tensor, loss: nn.Module, beta: float, *, slope: float = 0.0, bias: bool = False
) -> TrainingProblem:
    net = ParallelNet(
        nn.Linear(inputs.shape[1], 1, bias=False),
        nn.LeakyReLU(slope) if slope else nn.ReLU(),
        nn.Linear(1, targets.shape[1], bias=bias),
        num_branches=1,
        dtype=torch.float64,
    )
    return TrainingProblem.from_model(net, inputs, targets, loss=loss, path_decay=beta)


def none_of(branches: WorkingBranches) -> WorkingBranches:
    return branches.kept(torch.zeros(branches.number, dtype=torch.bool))


def all_patterns(problem: TrainingProblem) -> WorkingBranches:
    """A branch of each sign inside every cell of the plane."""
    angles = np.sort(np.concatenate([np.arctan2(x[1], x[0]) + np.array([0.5, 1.5]) * np.pi for x in problem.inputs.numpy()]))
    middles = np.concatenate([(angles[1:] + angles[:-1]) / 2, [(angles[0] + angles[-1]) / 2 + np.pi]])
    units = torch.from_numpy(np.stack([np.cos(middles), np.sin(middles)], axis=1))
    first = torch.cat([units, units])[:, None]
    last = torch.cat([torch.ones(len(units)), -torch.ones(len(units))]).double()[:, None, None]
    bias = torch.zeros(1, dtype=torch.float64) if problem.spec.output_bias else None
    return WorkingBranches(weights=(first, last), gates=None, output_bias=bias)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("loss", list(LOSSES))
def test_with_all_patterns_the_optimum_of_complete_enumeration_is_reached(loss: str, slope: float, bias: bool) -> None:
    inputs, targets = data()
    targets = torch.sigmoid(targets) if loss == "logistic" else targets
    problem = problem_of(inputs, targets, LOSSES[loss], 0.3, slope=slope, bias=bias)
    patterns = all_patterns(problem)
    assert len(enumerate_patterns(inputs.numpy())) == patterns.number // 2
    found = refitted_in_cells(problem, none_of(patterns), patterns, rtol=1e-12, deadline=Deadline())
    truth = convex_program_optimum(inputs.numpy(), targets.numpy(), loss, 0.3, slope=slope, bias=bias).value
    assert found.objective(problem) == pytest.approx(truth, rel=2e-6)


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_the_objective_falls_and_branches_of_a_pattern_become_one(num_outputs: int) -> None:
    inputs, targets = data(30, 3, num_outputs)
    problem = problem_of(inputs, targets, HalfSquaredLoss(), 0.5)
    generator = torch.Generator().manual_seed(1)
    start = grown(
        problem, none_of(random_branches(problem, 1, generator)), random_branches(problem, 40, generator), one_by_one=False
    )
    found = refitted_in_cells(problem, start, none_of(start), rtol=1e-9, deadline=Deadline())
    assert found.objective(problem) < start.objective(problem)
    twice = start.joined(start).scaled(torch.full((2 * start.number,), 0.5, dtype=torch.float64))
    again = refitted_in_cells(problem, twice, none_of(start), rtol=1e-9, deadline=Deadline())
    assert again.number <= start.number
    assert again.objective(problem) == pytest.approx(found.objective(problem), rel=1e-6)


def test_what_it_is_for_is_told() -> None:
    inputs, targets = data(10, 2, 2)
    assert has_cells(problem_of(inputs, targets, nn.MSELoss(), 0.1))
    assert not has_cells(problem_of(inputs, targets, nn.L1Loss(), 0.1))
    labels = torch.zeros(10, dtype=torch.int64)
    net = ParallelNet(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 2, bias=False), num_branches=1)
    assert not has_cells(TrainingProblem.from_model(net, inputs, labels, loss=nn.CrossEntropyLoss(), path_decay=0.1))
    gated = ParallelNet(nn.Linear(2, 1, bias=False), GatedReLU(2), nn.Linear(1, 2, bias=False), num_branches=1)
    assert not has_cells(TrainingProblem.from_model(gated, inputs, targets, loss=nn.MSELoss(), path_decay=0.1))


def test_without_time_or_branches_nothing_changes() -> None:
    problem = problem_of(*data(), HalfSquaredLoss(), 0.3)
    patterns = all_patterns(problem)
    nothing = none_of(patterns)
    assert refitted_in_cells(problem, nothing, nothing, rtol=1e-9, deadline=Deadline()) is nothing
    assert refitted_in_cells(problem, patterns, nothing, rtol=1e-9, deadline=Deadline(0.0)) is patterns


def test_a_step_may_leave_the_output_bias_only() -> None:
    """As where all inputs are zero: no pattern is left then, and the bias is the answer."""
    targets = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    problem = problem_of(torch.zeros(2, 2, dtype=torch.float64), targets, nn.MSELoss(), 0.3, bias=True)
    branch = WorkingBranches(
        weights=(torch.ones(1, 1, 2, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)),
        gates=None,
        output_bias=torch.zeros(1, dtype=torch.float64),
    )
    found = refitted_in_cells(problem, branch, none_of(branch), rtol=1e-9, deadline=Deadline())
    assert found.objective(problem) == pytest.approx(1.0)


def test_the_cone_program_has_the_closed_form_of_one_group() -> None:
    """``min |a - y|^2 / 2 + t |a|`` over a half-plane: project, then shrink."""
    normals = np.array([[1.0, 0.0], [0.0, 1.0]])
    target = np.array([-3.0, 4.0])
    for patterns, projected in (([[True, True]], [0.0, 4.0]), ([[False, True]], [-3.0, 4.0]), ([[False, False]], [-3.0, 0.0])):
        expected = np.array(projected) * (1.0 - 0.5 / np.linalg.norm(projected))
        found = solved_cone_program(
            np.eye(2), -target, 0.5, normals, np.array(patterns), np.array([[0.1, 0.1]]), deadline=Deadline()
        )
        assert found is not None
        np.testing.assert_allclose(found, expected, atol=1e-6)
