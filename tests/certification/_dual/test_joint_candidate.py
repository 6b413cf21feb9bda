from __future__ import annotations

import math

import pytest
import torch

from tests.certification._dual.test_joint_dual import trained, trained_objective, training_problem
from torch_strongdual.certification import Deadline
from torch_strongdual.certification._dual.abstract_joint_candidate import JointSituation
from torch_strongdual.certification._dual.joint_candidate import JointCandidate
from torch_strongdual.certification.oracles import BoundRequest, LocalSearch


@pytest.mark.slow
def test_splits_prove_more_than_the_plain_relaxation_does_and_never_too_much() -> None:
    problem = training_problem(0, 24, 11, path_decay=0.3)
    candidate = JointCandidate(problem)
    values = []
    for _ in range(10):
        point = candidate.next_point(Deadline(120.0), JointSituation(attainable=math.inf, near=problem.loss.targets))
        assert point is not None
        values.append(problem.scaled_bound(point.candidate, point.bound.upper).value)
    assert max(values[1:]) > values[0] * (1 + 1e-2)
    assert max(values) <= trained_objective(problem.inputs, problem.loss.targets, 0.3)


@pytest.mark.parametrize("seed", range(3))
def test_boxes_bound_points_towards_the_residual_and_prove_more_but_never_too_much(seed: int) -> None:
    problem = training_problem(seed, 60, 8, path_decay=0.3)
    attained, residual = trained(problem.inputs, problem.loss.targets, 0.3)
    candidate = JointCandidate(problem)
    scout = LocalSearch()
    request = BoundRequest(deadline=Deadline(30.0))
    near_norm = scout.bound(scout.init(problem.spec, problem.inputs), residual, request).lower
    situation = JointSituation(attainable=attained, near=residual, near_norm=near_norm)
    values, duals = [], []
    for _ in range(3):
        point = candidate.next_point(Deadline(300.0), situation)
        assert point is not None
        assert point.bound.lower <= point.bound.upper
        values.append(problem.scaled_bound(point.candidate, point.bound.upper).value)
        duals.append(point.candidate)
    assert max(values) <= attained
    assert values[2] > values[0]  # after a coarse search, which shows what others cost
    assert torch.equal(duals[0], duals[1])
    lengths = [float(torch.linalg.norm(end - start)) for start, end in ((duals[0], duals[2]), (duals[2], residual))]
    assert sum(lengths) == pytest.approx(float(torch.linalg.norm(residual - duals[0])))  # it lies between them


def test_what_suffices_need_not_be_proven_closer() -> None:
    problem = training_problem(0, 60, 8, path_decay=0.3)
    asked: list[float] = []
    for sufficient in (0.0, 10.0 * problem.dual_norm_limit):
        candidate = JointCandidate(problem)
        for _ in range(2):
            situation = JointSituation(
                attainable=math.inf,
                near=problem.loss.targets,
                sufficient=lambda _, norm=sufficient: norm,  # type: ignore[misc]
            )
            point = candidate.next_point(Deadline(300.0), situation)
        assert point is not None
        asked.append(point.bound.upper)
    assert asked[0] < asked[1] <= 10.0 * problem.dual_norm_limit
