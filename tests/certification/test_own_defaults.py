"""What the program around it has set for all of torch does not reach certification."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.certification import (
    Deadline,
    DualSolver,
    TrainingProblem,
    certify,
    max_path_decay,
    optimize_to_certificate,
    path_decay_path,
    path_decay_sensitivity,
    reduce_branches,
    verify_certificate,
)
from torch_strongdual.nn import GatedReLU, ParallelNet, ParallelWeights

LOSS = nn.HuberLoss()

Surroundings = Callable[[], contextlib.AbstractContextManager[object]]
SURROUNDINGS: dict[str, Surroundings] = {
    "as usual": contextlib.nullcontext,
    # Stands for a GPU: a tensor that is made on the default device by mistake cannot be computed with.
    "another default device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
}
MIDDLES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "linear": nn.Identity,
    "gated": lambda: GatedReLU(2),
}


def numbers(net: ParallelNet, inputs: Tensor, targets: Tensor) -> list[float]:
    certificate = certify(net, inputs, targets, loss=LOSS, path_decay=0.05)
    result = optimize_to_certificate(net, inputs, targets, loss=LOSS, path_decay=0.05, rtol=1e-6)
    table = path_decay_path(net, inputs, targets, loss=LOSS, fractions=(0.5,), rtol=1e-6)
    sensitivity = path_decay_sensitivity(result.net, inputs, targets, loss=LOSS, certificate=result.certificate)
    report = verify_certificate(certificate, net, inputs, targets, loss=LOSS, path_decay=0.05)
    solver = DualSolver(TrainingProblem.from_model(net, inputs, targets, loss=LOSS, path_decay=0.1)).at_path_decay(0.05)
    stepped = solver.step(ParallelWeights.from_module(net), rtol=1e-6, deadline=Deadline(60.0))
    with torch.device("cpu"):  # the outputs are the caller's own business
        penalty = float(reduce_branches(result.net, inputs).path_penalty().detach())
    return [
        certificate.primal_value,
        result.certificate.primal_value,
        table.rows[0].result.certificate.primal_value,
        max_path_decay(net, inputs, targets, loss=LOSS).upper,
        sensitivity.penalty,
        report.dual_objective,
        stepped.dual_bound,
        penalty,
    ]


@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_numbers_are_the_same(surroundings: str, middle: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(2, 1, bias=False), MIDDLES[middle](), nn.Linear(1, 1)]
    net = ParallelNet(*layers, num_branches=3, dtype=torch.float64)
    inputs = torch.randn(8, 2, dtype=torch.float64)
    targets = inputs.relu().sum(1, keepdim=True)
    expected = numbers(net, inputs, targets)
    with SURROUNDINGS[surroundings]():
        assert numbers(net, inputs, targets) == pytest.approx(expected, rel=1e-4)


def test_data_and_networks_made_in_inference_mode() -> None:
    with torch.inference_mode():
        torch.manual_seed(0)
        net = ParallelNet(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1), num_branches=2)
        inputs = torch.randn(8, 2)
        targets = inputs.relu().sum(1, keepdim=True)
    result = optimize_to_certificate(net, inputs, targets, loss=LOSS, path_decay=0.05)
    assert result.certificate.is_certified
