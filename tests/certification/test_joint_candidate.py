from __future__ import annotations

import math

import pytest
import torch

from tests.certification.test_joint_dual import training_problem
from torch_strongdual.certification import Deadline
from torch_strongdual.certification._joint_candidate import JointCandidate


def trained_objective(inputs: torch.Tensor, targets: torch.Tensor, path_decay: float) -> float:
    """What Adam attains with twenty neurons."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(inputs.shape[1], 20, generator=generator, dtype=torch.float64).mul_(0.3).requires_grad_()
    last = torch.randn(20, 1, generator=generator, dtype=torch.float64).mul_(0.3).requires_grad_()
    optimizer = torch.optim.Adam([first, last], lr=0.02)
    value = math.inf
    for _ in range(400):
        optimizer.zero_grad()
        error = (inputs @ first).relu() @ last - targets
        penalty = (first.norm(dim=0) * last[:, 0].abs()).sum()
        objective = 0.5 * error.square().sum() + path_decay * penalty
        objective.backward()
        optimizer.step()
        value = min(value, objective.item())
    return value


@pytest.mark.slow
def test_splits_prove_more_than_the_plain_relaxation_does_and_never_too_much() -> None:
    problem = training_problem(0, 24, 11, path_decay=0.3)
    candidate = JointCandidate(problem)
    values = []
    for _ in range(10):
        point = candidate.next_point(Deadline(120.0), attainable=math.inf)
        assert point is not None
        values.append(problem.scaled_bound(point.candidate, point.bound.upper).value)
    assert max(values[1:]) > values[0] * (1 + 1e-2)
    assert max(values) <= trained_objective(problem.inputs, problem.loss.targets, 0.3)
