from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_strongdual import ParallelNet, PathAdamW
from torch_strongdual.certification import Deadline, DualSolver, TrainingProblem
from torch_strongdual.certification._dual.deep_joint_candidate import DeepJointCandidate
from torch_strongdual.certification.oracles import BoundRequest
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import ParallelWeights


def deep_net(
    num_columns: int, *, layers: int = 3, num_outputs: int = 1, slope: float = 0.0, output_bias: bool = False
) -> ParallelNet:
    widths = [num_columns, *(4,) * (layers - 2), 1]
    parts: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        parts += [nn.Linear(fan_in, fan_out, bias=False), nn.LeakyReLU(slope) if slope else nn.ReLU()]
    last = nn.Linear(1, num_outputs, bias=output_bias)
    return ParallelNet(*parts, last, num_branches=20).double()


def noisy(seed: int, num_samples: int, num_columns: int, num_outputs: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_samples, num_columns, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_samples, num_outputs, generator=generator, dtype=torch.float64)
    return inputs, inputs[:, :1].relu() - inputs[:, -1:].abs() + 0.5 * noise + 1.0


def trained(net: ParallelNet, inputs: Tensor, targets: Tensor, loss: nn.Module, path_decay: float) -> ParallelNet:
    optimizer = PathAdamW(net.path_param_groups(path_decay=path_decay), lr=2e-2)
    for _ in range(300):
        optimizer.zero_grad()
        loss(net(inputs), targets).backward()
        optimizer.step()
    return net


@pytest.mark.parametrize(
    ("loss", "layers", "slope", "output_bias"),
    [
        (HalfSquaredLoss(), 3, 0.0, False),
        (nn.MSELoss(), 4, 0.0, True),
        (nn.HuberLoss(delta=0.5), 3, 0.1, True),
        (nn.L1Loss(), 3, 0.0, False),
        (nn.BCEWithLogitsLoss(), 3, 0.0, True),
        (nn.BCEWithLogitsLoss(reduction="sum", pos_weight=torch.tensor(2.0)), 4, 0.0, False),
        (nn.CrossEntropyLoss(), 3, 0.0, True),
        (nn.CrossEntropyLoss(reduction="sum", label_smoothing=0.1), 3, 0.0, False),
    ],
)
def test_points_are_in_the_domain_and_prove_no_more_than_networks_attain(
    loss: Any, layers: int, slope: float, output_bias: bool
) -> None:
    torch.manual_seed(0)
    inputs, targets = noisy(layers, 20, 2)
    num_outputs = 2 if isinstance(loss, nn.CrossEntropyLoss) else 1
    targets = (targets > 0.5).double() if isinstance(loss, nn.BCEWithLogitsLoss) else targets
    targets = (targets[:, 0] > 0.5).long() if num_outputs == 2 else targets
    path_decay = 0.5 if isinstance(loss, HalfSquaredLoss) or loss.reduction == "sum" else 0.02
    net = deep_net(2, layers=layers, num_outputs=num_outputs, slope=slope, output_bias=output_bias)
    net = trained(net, inputs, targets, loss, path_decay)
    problem = TrainingProblem.from_model(net, inputs, targets, loss=loss, path_decay=path_decay)
    solver = DualSolver(problem)
    solver.prepare()
    near = problem.dual_candidate(net(inputs).detach())
    found = solver.state.joint_point(Deadline(4.0), near=near)
    assert found is not None
    value = problem.scaled_bound(found.candidate, found.bound.upper).value
    primal = problem.primal(ParallelWeights.from_module(net)).value
    assert 0.0 < value <= primal
    assert found.bound.lower <= found.bound.upper
    if output_bias:
        assert abs(float(found.candidate[:, 0].sum())) <= 1e-12 * float(found.candidate.abs().sum())


@pytest.fixture(scope="module")
def loose() -> tuple[TrainingProblem, Tensor, float]:
    """A problem whose residual lines bound badly, the residual of a trained network, and what that attains."""
    torch.manual_seed(0)
    inputs, targets = noisy(0, 30, 3)
    net = trained(deep_net(3), inputs, targets, HalfSquaredLoss(), 1.0)
    problem = TrainingProblem.from_model(net, inputs, targets, loss=HalfSquaredLoss(), path_decay=1.0)
    attained = problem.primal(ParallelWeights.from_module(net)).value
    return problem, problem.dual_candidate(net(inputs).detach()), attained


@pytest.mark.slow
def test_it_proves_more_than_the_rescaled_residual_where_lines_are_loose(
    loose: tuple[TrainingProblem, Tensor, float],
) -> None:
    problem, residual, attained = loose
    solver = DualSolver(problem)
    solver.prepare()
    bound = solver.state.bound_dual_norm(residual, BoundRequest(rtol=2e-2, deadline=Deadline(4.0)))
    rescaled = problem.scaled_bound(residual, bound.upper).value
    found = solver.state.joint_point(Deadline(8.0), near=residual)
    assert found is not None
    value = problem.scaled_bound(found.candidate, found.bound.upper).value
    assert value <= attained
    assert attained - value < 0.8 * (attained - rescaled)


@pytest.mark.slow
def test_cases_by_sign_tighten_what_lines_leave_and_are_gone_on_with(loose: tuple[TrainingProblem, Tensor, float]) -> None:
    problem, residual, attained = loose
    solver = DualSolver(problem)
    solver.prepare()
    lines, some, more = (
        solver.state.bound_dual_norm(residual, BoundRequest(rtol=rtol, deadline=Deadline(seconds)))
        for rtol, seconds in ((2e-2, 15.0), (1e-2, 15.0), (1e-2, 4.0))
    )
    assert lines.ratio > 1.05
    assert lines.lower <= more.upper <= some.upper < lines.upper
    assert "cases" in str(more.stats.get("limited_by", "cases"))
    assert problem.scaled_bound(residual, more.upper).value <= attained


def test_it_takes_problems_with_several_activations_and_one_output_only() -> None:
    inputs, targets = noisy(0, 10, 2)

    def supports(net: nn.Module, goal: Tensor, loss: nn.Module) -> bool:
        return DeepJointCandidate.supports(TrainingProblem.from_model(net, inputs, goal, loss=loss, path_decay=1.0))

    assert supports(deep_net(2), targets, nn.MSELoss())
    assert not supports(deep_net(2, layers=2), targets, nn.MSELoss())
    assert not supports(deep_net(2, num_outputs=2), noisy(0, 10, 2, 2)[1], nn.MSELoss())
    assert supports(deep_net(2), (targets > 0).double(), nn.BCEWithLogitsLoss())
    assert not supports(deep_net(2, num_outputs=2), noisy(0, 10, 2, 2)[1].sigmoid(), nn.BCEWithLogitsLoss())
    assert supports(deep_net(2, num_outputs=2), (targets[:, 0] > 0).long(), nn.CrossEntropyLoss())
    assert not supports(deep_net(2, num_outputs=3), (targets[:, 0] > 0).long(), nn.CrossEntropyLoss())


def test_without_time_there_is_no_point_yet() -> None:
    inputs, targets = noisy(0, 20, 2)
    problem = TrainingProblem.from_model(deep_net(2), inputs, targets, loss=nn.MSELoss(), path_decay=0.1)
    solver = DualSolver(problem)
    solver.prepare()
    assert solver.state.joint_point(Deadline(0.0), near=targets) is None
    assert not solver.state.joint.is_spent
    assert solver.state.joint_point(Deadline(20.0), near=targets) is not None
    assert solver.best.value == -math.inf  # offering is up to the run


@pytest.mark.slow
@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(reduction="sum"), nn.CrossEntropyLoss(reduction="sum")])
def test_it_proves_more_than_the_rescaled_residual_for_labels_with_noise(loss: nn.Module) -> None:
    torch.manual_seed(0)
    inputs, targets = noisy(0, 40, 3)
    is_logistic = isinstance(loss, nn.BCEWithLogitsLoss)
    labels = (targets > 0.5).double() if is_logistic else (targets[:, 0] > 0.5).long()
    net = trained(deep_net(3, num_outputs=1 if is_logistic else 2), inputs, labels, loss, 0.5)
    problem = TrainingProblem.from_model(net, inputs, labels, loss=loss, path_decay=0.5)
    attained = problem.primal(ParallelWeights.from_module(net)).value
    residual = problem.dual_candidate(net(inputs).detach())
    solver = DualSolver(problem)
    solver.prepare()
    bound = solver.state.bound_dual_norm(residual, BoundRequest(rtol=2e-2, deadline=Deadline(4.0)))
    rescaled = problem.scaled_bound(residual, bound.upper).value
    found = solver.state.joint_point(Deadline(8.0), near=residual)
    assert found is not None
    value = problem.scaled_bound(found.candidate, found.bound.upper).value
    assert value <= attained
    assert attained - value < 0.8 * (attained - rescaled)
