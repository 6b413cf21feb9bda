from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.certification import TrainingProblem
from torch_strongdual.certification._dual.problem_identity import ProblemIdentity
from torch_strongdual.nn import GatedReLU, ParallelNet

INPUTS = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]])
TARGETS = torch.tensor([[1.0], [-1.0], [0.5]])


def problem(
    inputs: Tensor = INPUTS,
    targets: Tensor = TARGETS,
    *,
    loss: nn.Module | None = None,
    path_decay: float = 0.1,
    middle: nn.Module | None = None,
    bias: bool = False,
) -> TrainingProblem:
    net = ParallelNet(nn.Linear(2, 2, bias=bias), middle or nn.ReLU(), nn.Linear(2, 1, bias=False), num_branches=2)
    return TrainingProblem.from_model(net, inputs, targets, loss=loss or nn.MSELoss(), path_decay=path_decay)


def digest(posed: TrainingProblem) -> str:
    return ProblemIdentity(posed).digest()


def test_the_same_problem_posed_twice_is_the_same() -> None:
    assert digest(problem()) == digest(problem(INPUTS.clone(), TARGETS.double()))
    assert digest(problem(INPUTS.T.contiguous().T)) == digest(problem())


@pytest.mark.parametrize(
    "other",
    [
        problem(INPUTS.double() * (1.0 + 2.0**-40)),
        problem(INPUTS.flip(0)),
        problem(INPUTS[:2], TARGETS[:2]),
        problem(targets=TARGETS + 1.0),
        problem(path_decay=0.2),
        problem(bias=True),
        problem(loss=nn.MSELoss(reduction="sum")),
        problem(loss=nn.HuberLoss()),
        problem(loss=nn.HuberLoss(delta=2.0)),
        problem(loss=nn.SmoothL1Loss()),
        problem(middle=nn.LeakyReLU(0.1)),
        problem(middle=nn.Identity()),
        dataclasses.replace(problem(), penalty="l2_path"),
    ],
    ids=[
        "input",
        "order",
        "samples",
        "target",
        "strength",
        "bias",
        "reduction",
        "loss",
        "delta",
        "beta",
        "leaky",
        "linear",
        "penalty",
    ],
)
def test_whatever_a_bound_depends_on_tells_problems_apart(other: TrainingProblem) -> None:
    assert digest(other) != digest(problem())


def test_weights_of_classes_tell_problems_apart() -> None:
    def weighted(weight: float) -> TrainingProblem:
        loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([weight]))
        return problem(targets=(TARGETS > 0).float(), loss=loss)

    assert digest(weighted(1.0)) == digest(weighted(1.0)) != digest(weighted(2.0))


def test_gates_count_as_a_set() -> None:
    gated = problem(middle=GatedReLU(2))
    (activation,) = gated.spec.activations
    (gates,) = activation.gate_vectors

    def with_gates(vectors: Tensor) -> TrainingProblem:
        changed = dataclasses.replace(activation, gate_vectors=(vectors,))
        return dataclasses.replace(gated, spec=dataclasses.replace(gated.spec, activations=(changed,)))

    assert digest(with_gates(gates.flip(0).repeat(2, 1))) == digest(gated)
    assert digest(with_gates(gates[:1])) != digest(gated)


def test_inputs_that_torch_has_written_to_are_noticed() -> None:
    inputs = INPUTS.clone()
    identity = ProblemIdentity(problem(inputs))
    assert not identity.has_changed()
    inputs[0, 0] = 7.0
    assert identity.has_changed()


def test_inputs_made_in_inference_mode_are_taken() -> None:
    with torch.inference_mode():
        identity = ProblemIdentity(problem(INPUTS * 1.0))
        assert not identity.has_changed()
