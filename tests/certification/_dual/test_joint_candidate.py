from __future__ import annotations

import math

import pytest

from tests.certification._dual.test_joint_dual import trained_objective, training_problem
from torch_strongdual.certification import Deadline
from torch_strongdual.certification._dual.joint_candidate import JointCandidate


@pytest.mark.slow
def test_splits_prove_more_than_the_plain_relaxation_does_and_never_too_much() -> None:
    problem = training_problem(0, 24, 11, path_decay=0.3)
    candidate = JointCandidate(problem)
    values = []
    for _ in range(10):
        point = candidate.next_point(Deadline(120.0), attainable=math.inf, near=problem.loss.targets, oracle_state=None)
        assert point is not None
        values.append(problem.scaled_bound(point.candidate, point.bound.upper).value)
    assert max(values[1:]) > values[0] * (1 + 1e-2)
    assert max(values) <= trained_objective(problem.inputs, problem.loss.targets, 0.3)
