from __future__ import annotations

import dataclasses

import torch
from torch import nn

from torch_strongdual.callbacks._distinct_gates import branch_of_each_gate, gate_rows, with_distinct_gates
from torch_strongdual.callbacks._fingerprint import problem_fingerprint
from torch_strongdual.certification import TrainingProblem
from torch_strongdual.nn import BranchActivation, BranchSpec

FIRST = torch.tensor([[1.0, 0.0], [2.0, 1.0], [1.0, -0.0], [2.0, 1.0]])
SECOND = torch.tensor([[0.0, 3.0], [5.0, 5.0], [0.0, 3.0], [6.0, 6.0]])


def two_layers_of_gates() -> BranchSpec:
    activations = tuple(BranchActivation(negative_slope=1.0, gate_vectors=(gates,)) for gates in (FIRST, SECOND))
    return BranchSpec(widths=(2, 3, 3, 1), activations=activations)


def test_each_combination_is_kept_once_in_order() -> None:
    spec = with_distinct_gates(two_layers_of_gates())
    assert torch.equal(spec.activations[0].gate_vectors[0], FIRST[[0, 1, 3]])
    assert torch.equal(spec.activations[1].gate_vectors[0], SECOND[[0, 1, 3]])


def test_branches_without_gates_are_left_alone() -> None:
    spec = BranchSpec(widths=(2, 3, 1), activations=(BranchActivation(),))
    assert with_distinct_gates(spec) is spec
    assert gate_rows(spec) is None


def test_the_branch_of_a_gate_is_its_first() -> None:
    rows = gate_rows(two_layers_of_gates())
    assert rows is not None
    assert branch_of_each_gate(rows, rows[[3, 2]]).tolist() == [3, 0]


def test_fingerprints_are_of_the_set_of_gates() -> None:
    loss = nn.MSELoss()

    def fingerprint(branches: list[int]) -> str:
        gate = BranchActivation(negative_slope=1.0, gate_vectors=(FIRST[branches],))
        spec = BranchSpec(widths=(2, 3, 1), activations=(gate,))
        net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
        problem = TrainingProblem.from_model(net, torch.eye(2), torch.zeros(2, 1), loss=loss, path_decay=0.1)
        return problem_fingerprint("data", dataclasses.replace(problem, spec=spec), loss)

    assert fingerprint([0, 1]) == fingerprint([3, 2, 0])
    assert fingerprint([0, 1]) != fingerprint([0])
