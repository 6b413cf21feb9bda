from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.references.doubly_nonnegative_sdp import relaxed_outputs_value
from torch_strongdual.certification import Deadline, TrainingProblem, optimize_to_certificate
from torch_strongdual.certification._dual.abstract_joint_candidate import JointSituation
from torch_strongdual.certification._dual.joint_candidate import JointCandidate
from torch_strongdual.certification._dual.joint_dual import JointDual
from torch_strongdual.certification.oracles import BoundRequest
from torch_strongdual.certification.oracles._doubly_nonnegative._joint import joint_outputs
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import ParallelNet

REGRESSION, CLASSES = HalfSquaredLoss(), nn.CrossEntropyLoss(reduction="sum")


def problem_of(
    loss: nn.Module,
    *,
    num_samples: int = 8,
    in_features: int = 3,
    path_decay: float = 0.5,
    output_bias: bool = False,
    seed: int = 0,
    num_outputs: int = 3,
    units: float = 1.0,
) -> TrainingProblem:
    net, inputs, targets = instance_of(
        loss, num_samples=num_samples, in_features=in_features, output_bias=output_bias, seed=seed, num_outputs=num_outputs
    )
    return TrainingProblem.from_model(net, units * inputs, targets, loss=loss, path_decay=units * path_decay)


def instance_of(
    loss: nn.Module, *, num_samples: int, in_features: int, output_bias: bool, seed: int, num_outputs: int
) -> tuple[ParallelNet, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_samples, in_features, generator=generator, dtype=torch.float64)
    targets = torch.randn(num_samples, num_outputs, generator=generator, dtype=torch.float64)
    if isinstance(loss, nn.CrossEntropyLoss):
        targets = targets.argmax(dim=1)
    elif isinstance(loss, nn.BCEWithLogitsLoss):
        targets = (targets > 0).double()
    layers = nn.Linear(in_features, 1, bias=False), nn.ReLU(), nn.Linear(1, num_outputs, bias=output_bias)
    return ParallelNet(*layers, num_branches=4).double(), inputs, targets


def proven(iterations: JointDual, problem: TrainingProblem, candidate: Tensor | None, *, seconds: float = 0.0) -> float:
    proof = iterations.proof()
    assert candidate is not None
    assert proof is not None
    state = proof.init(problem.spec, problem.inputs)
    request = BoundRequest(floor=problem.dual_norm_limit, deadline=Deadline(seconds))
    return problem.scaled_bound(candidate, proof.bound(state, candidate, request).upper).value


class TestValue:
    @pytest.mark.parametrize("output_bias", [False, True])
    @pytest.mark.parametrize("loss", [REGRESSION, CLASSES])
    def test_proves_what_the_semidefinite_program_does(self, loss: nn.Module, output_bias: bool) -> None:
        problem = problem_of(loss, output_bias=output_bias)
        iterations = JointDual(problem)
        candidate = iterations.run(deadline=Deadline(20.0), rtol=1e-5)
        values = [proven(iterations, problem, candidate)]
        values += [proven(iterations, problem, iterations.refine(split=False, deadline=Deadline(20.0))) for _ in range(4)]
        rows, targets = problem.inputs.numpy(), problem.loss.targets.numpy()
        best = relaxed_outputs_value(rows, targets, 0.5, is_softmax=loss is CLASSES, has_bias=output_bias)
        assert max(values) <= best * (1 + 1e-6)
        assert max(values) >= best * (1 - 2e-3)

    @pytest.mark.parametrize("loss", [REGRESSION, CLASSES, nn.BCEWithLogitsLoss(reduction="sum"), nn.HuberLoss(delta=0.5)])
    @pytest.mark.parametrize("seed", range(2))
    def test_splits_prove_more_and_never_more_than_a_network_attains(self, loss: nn.Module, seed: int) -> None:
        decay = 0.03 if isinstance(loss, nn.HuberLoss) else 0.8
        problem = problem_of(loss, path_decay=decay, seed=seed, num_samples=24, in_features=8)
        net, inputs, targets = instance_of(loss, output_bias=False, seed=seed, num_samples=24, in_features=8, num_outputs=3)
        trained = optimize_to_certificate(net, inputs, targets, loss=loss, path_decay=decay, rtol=0.5, time_budget=20.0)
        iterations = JointDual(problem)
        plain = [proven(iterations, problem, iterations.run(deadline=Deadline(20.0), rtol=1e-4))]
        plain += [proven(iterations, problem, iterations.refine(split=False, deadline=Deadline(20.0))) for _ in range(2)]
        for _ in range(3):
            candidate = iterations.refine(split=True, deadline=Deadline(20.0))
        split = proven(iterations, problem, candidate, seconds=20.0)
        assert split > max(plain) * (1 + 1e-3)
        assert split <= trained.certificate.primal_value

    def test_units_do_not_matter(self) -> None:
        points = []
        for units in (1.0, 1024.0):
            candidate = JointDual(problem_of(REGRESSION, units=units)).run(deadline=Deadline(20.0), max_iterations=200)
            assert candidate is not None
            points.append(candidate)
        torch.testing.assert_close(points[0], points[1], rtol=1e-6, atol=1e-9)


class TestNarrowFactors:
    def test_prove_less_until_they_are_widened(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With one column moments are a single branch's, which cannot be the optimum; what it proves is a bound still."""
        monkeypatch.setattr(joint_outputs, "_MANY_ROWS", 1)
        monkeypatch.setattr(joint_outputs, "_NARROW", 1)
        problem = problem_of(REGRESSION, num_samples=20, in_features=4)
        iterations = JointDual(problem)
        narrow = [proven(iterations, problem, iterations.run(deadline=Deadline(20.0), rtol=1e-4))]
        narrow += [proven(iterations, problem, iterations.refine(split=False, deadline=Deadline(20.0))) for _ in range(4)]
        assert iterations.widen()
        assert not iterations.widen()
        wide = [proven(iterations, problem, iterations.refine(split=False, deadline=Deadline(20.0))) for _ in range(8)]
        rows, targets = problem.inputs.numpy(), problem.loss.targets.numpy()
        best = relaxed_outputs_value(rows, targets, 0.5, is_softmax=False, has_bias=False)
        assert max(narrow) < max(wide) <= best * (1 + 1e-6)
        assert max(wide) >= best * (1 - 2e-3)

    def test_the_point_stays_where_it_was(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(joint_outputs, "_MANY_ROWS", 1)
        monkeypatch.setattr(joint_outputs, "_NARROW", 3)
        problem = problem_of(REGRESSION, num_samples=20, in_features=4)
        iterations = JointDual(problem)
        before = iterations.run(deadline=Deadline(20.0), rtol=1e-4)
        iterations.widen()
        after = iterations.run(deadline=Deadline(20.0))  # settled: no further round
        assert before is not None
        assert after is not None
        assert float((after - before).norm()) <= 0.1 * float(before.norm())


class TestDomain:
    @pytest.mark.parametrize("loss", [CLASSES, nn.BCEWithLogitsLoss(), nn.HuberLoss(delta=0.3)])
    def test_points_are_in_the_domain_and_balanced(self, loss: nn.Module) -> None:
        problem = problem_of(loss, path_decay=0.01, output_bias=True)
        candidate = JointDual(problem).run(deadline=Deadline(20.0))
        assert candidate is not None
        assert math.isfinite(problem.loss.dual_objective(candidate))
        assert float(candidate.sum(dim=0).abs().max()) <= 1e-12

    def test_samples_without_features_keep_their_residual(self) -> None:
        problem = problem_of(REGRESSION)
        problem.inputs[2] = 0.0
        candidate = JointDual(problem).run(deadline=Deadline(20.0))
        assert candidate is not None
        assert torch.equal(candidate[2], problem.loss.targets[2])


class TestSupport:
    def test_one_output_of_a_classifier_is_left_to_other_methods(self) -> None:
        assert not JointDual.supports(problem_of(nn.BCEWithLogitsLoss(), num_outputs=1))
        assert not JointDual.supports(problem_of(CLASSES, num_outputs=2))

    def test_a_residual_that_is_nearly_proven_comes_first(self) -> None:
        candidate = JointCandidate(problem_of(CLASSES, num_samples=24, in_features=8))
        assert not candidate.is_spent
        assert candidate.worthwhile_from > 0.02

    def test_zero_targets(self) -> None:
        problem = problem_of(REGRESSION)
        problem.loss.targets.zero_()
        assert JointDual(problem).run(deadline=Deadline(1.0)) is None

    def test_a_candidate_of_the_dual_solver_is_refined_from_call_to_call(self) -> None:
        problem = problem_of(CLASSES, num_samples=24, in_features=8, path_decay=0.8)
        candidate, values = JointCandidate(problem), []
        for _ in range(6):
            near = torch.zeros_like(problem.loss.targets)
            point = candidate.next_point(Deadline(60.0), JointSituation(attainable=math.inf, near=near))
            assert point is not None
            values.append(problem.scaled_bound(point.candidate, point.bound.upper).value)
        assert max(values[1:]) > values[0]
        assert np.isfinite(values).all()
