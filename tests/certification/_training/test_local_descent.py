from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from torch_strongdual.certification import Deadline, TrainingProblem
from torch_strongdual.certification._training.local_descent import descend
from torch_strongdual.certification._training.weight_objective import weight_objective
from torch_strongdual.certification._working_branches import WorkingBranches
from torch_strongdual.nn import GatedReLU, ParallelNet, ParallelWeights

MIDDLES: dict[str, Callable[[], list[nn.Module]]] = {
    "relu": lambda: [nn.ReLU()],
    "leaky": lambda: [nn.LeakyReLU(0.3)],
    "linear": list,
    "gated": lambda: [GatedReLU(4)],
    "deep": lambda: [nn.ReLU(), nn.Linear(1, 1, bias=False), nn.LeakyReLU(0.3)],
}


def drawn(kind: str, *, num_outputs: int, bias: bool, loss: nn.Module) -> tuple[TrainingProblem, WorkingBranches]:
    torch.manual_seed(3)
    layers = [nn.Linear(4, 1, bias=False), *MIDDLES[kind](), nn.Linear(1, num_outputs, bias=bias)]
    net = ParallelNet(*layers, num_branches=7, dtype=torch.float64)
    inputs, targets = torch.randn(19, 4, dtype=torch.float64), torch.rand(19, num_outputs, dtype=torch.float64)
    problem = TrainingProblem.from_model(net, inputs, targets, loss=loss, path_decay=0.05)
    return problem, WorkingBranches.of_network(ParallelWeights.from_module(net)).balanced()


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.HuberLoss(delta=0.1), nn.BCEWithLogitsLoss()], ids=type)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("kind", MIDDLES)
def test_the_gradient_is_that_of_the_objective(kind: str, num_outputs: int, bias: bool, loss: nn.Module) -> None:
    problem, branches = drawn(kind, num_outputs=num_outputs, bias=bias, loss=loss)
    tensors = [*branches.weights, *([] if branches.output_bias is None else [branches.output_bias])]
    evaluate = weight_objective(problem, branches, problem.loss)
    value, gradients = evaluate(tensors)
    assert value == pytest.approx(branches.objective(problem), rel=1e-13)  # balanced: both forms of the penalty agree
    assert [gradient.shape for gradient in gradients] == [tensor.shape for tensor in tensors]
    step = 1e-6
    for index, tensor in enumerate(tensors):
        direction = torch.randn_like(tensor)
        ends = [evaluate([*tensors[:index], tensor + s * direction, *tensors[index + 1 :]])[0] for s in (step, -step)]
        slope = float((gradients[index] * direction).sum())
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("kind", MIDDLES)
def test_better_networks_are_reported_on_the_way_and_always_the_same(kind: str) -> None:
    problem, branches = drawn(kind, num_outputs=2, bias=True, loss=nn.MSELoss())

    def reported() -> tuple[list[float], float]:
        found: list[float] = []
        end = descend(
            problem,
            branches,
            deadline=Deadline(),
            max_iterations=200,
            report=lambda better: found.append(better.objective(problem)),
        )
        return found, end.objective(problem)

    on_the_way, end = reported()
    assert len(on_the_way) >= 2
    assert max(on_the_way) < branches.objective(problem)
    assert min(on_the_way) >= end * (1.0 - 1e-12)
    assert reported() == (on_the_way, end)
