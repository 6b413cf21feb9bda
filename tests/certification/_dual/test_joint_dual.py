from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.references.doubly_nonnegative_sdp import relaxed_training_value
from torch_strongdual.certification import Deadline, TrainingProblem
from torch_strongdual.certification._dual.joint_dual import JointDual
from torch_strongdual.certification.oracles import BoundRequest, DoublyNonnegativeRelaxation
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import ParallelNet


def training_problem(
    seed: int,
    num_samples: int,
    in_features: int,
    *,
    path_decay: float,
    slope: float = 0.0,
    output_bias: bool = False,
    loss: nn.Module | None = None,
    units: tuple[float, float] = (1.0, 1.0),
) -> TrainingProblem:
    generator = torch.Generator().manual_seed(seed)
    inputs = units[0] * torch.randn(num_samples, in_features, generator=generator, dtype=torch.float64)
    targets = units[1] * torch.randn(num_samples, 1, generator=generator, dtype=torch.float64)
    activation = nn.LeakyReLU(slope) if slope else nn.ReLU()
    layers = nn.Linear(in_features, 1, bias=False), activation, nn.Linear(1, 1, bias=output_bias)
    net = ParallelNet(*layers, num_branches=2).double()
    return TrainingProblem.from_model(net, inputs, targets, loss=loss or HalfSquaredLoss(), path_decay=path_decay)


def proven(problem: TrainingProblem, candidate: Tensor) -> float:
    """The dual bound of a candidate by one relaxation a sign, without splitting."""
    oracle = DoublyNonnegativeRelaxation(max_nodes=1)
    state = oracle.init(problem.spec, problem.inputs)
    request = BoundRequest(rtol=1e-3, floor=1.002 * problem.dual_norm_limit, deadline=Deadline(20.0))
    return problem.scaled_bound(candidate, oracle.bound(state, candidate, request).upper).value


def trained_objective(inputs: torch.Tensor, targets: torch.Tensor, path_decay: float) -> float:
    """What Adam attains with twenty neurons."""
    return trained(inputs, targets, path_decay)[0]


def trained(inputs: torch.Tensor, targets: torch.Tensor, path_decay: float) -> tuple[float, torch.Tensor]:
    """Objective and residual of twenty neurons after Adam."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(inputs.shape[1], 20, generator=generator, dtype=torch.float64).mul_(0.3).requires_grad_()
    last = torch.randn(20, 1, generator=generator, dtype=torch.float64).mul_(0.3).requires_grad_()
    optimizer = torch.optim.Adam([first, last], lr=0.02)
    value, error = math.inf, -targets
    for _ in range(400):
        optimizer.zero_grad()
        error = (inputs @ first).relu() @ last - targets
        penalty = (first.norm(dim=0) * last[:, 0].abs()).sum()
        objective = 0.5 * error.square().sum() + path_decay * penalty
        objective.backward()
        optimizer.step()
        value = min(value, objective.item())
    return value, -error.detach()


def joint_dual_point(
    problem: TrainingProblem, *, deadline: Deadline, rtol: float = 1e-3, max_iterations: int = 2000
) -> Tensor | None:
    return JointDual(problem).run(deadline=deadline, rtol=rtol, max_iterations=max_iterations)


class TestValue:
    @pytest.mark.parametrize(("slope", "output_bias"), [(0.0, False), (0.2, True)])
    def test_no_other_point_proves_more(self, slope: float, output_bias: bool) -> None:
        problem = training_problem(1, 8, 3, path_decay=0.4, slope=slope, output_bias=output_bias)
        candidate = joint_dual_point(problem, deadline=Deadline(20.0), rtol=1e-4, max_iterations=500)
        assert candidate is not None
        rows, targets = problem.inputs.numpy(), problem.loss.targets[:, 0].numpy()
        best = relaxed_training_value(rows, targets, 0.4, slope=slope, has_bias=output_bias)
        bound = proven(problem, candidate)
        assert bound <= best * (1 + 1e-6)
        assert bound >= best * (1 - 1e-2)

    @pytest.mark.parametrize("slope", [0.0, 0.2])
    @pytest.mark.parametrize("output_bias", [False, True])
    def test_low_rank_factors_prove_as_much(self, slope: float, output_bias: bool) -> None:
        problem = training_problem(1, 8, 3, path_decay=0.4, slope=slope, output_bias=output_bias)
        iterations = JointDual(problem, low_rank_rows=0)
        candidate = iterations.run(deadline=Deadline(20.0), rtol=1e-5, max_iterations=1500)
        proof = iterations.proof()
        assert candidate is not None
        assert proof is not None
        rows, targets = problem.inputs.numpy(), problem.loss.targets[:, 0].numpy()
        best = relaxed_training_value(rows, targets, 0.4, slope=slope, has_bias=output_bias)
        state = proof.init(problem.spec, problem.inputs)
        upper = proof.bound(state, candidate, BoundRequest(deadline=Deadline())).upper
        for bound in (proven(problem, candidate), problem.scaled_bound(candidate, upper).value):
            assert best * (1 - 1e-2) <= bound <= best * (1 + 1e-6)

    def test_splits_after_low_rank_factors_prove_more_and_never_too_much(self) -> None:
        problem = training_problem(0, 24, 11, path_decay=0.3)
        iterations = JointDual(problem, low_rank_rows=0)
        values = []
        for call in range(9):
            if call == 0:
                candidate = iterations.run(deadline=Deadline(20.0))
            else:
                candidate = iterations.refine(split=call % 3 == 1, deadline=Deadline(20.0))
            proof = iterations.proof()
            assert candidate is not None
            assert proof is not None
            state = proof.init(problem.spec, problem.inputs)
            upper = proof.bound(state, candidate, BoundRequest(deadline=Deadline())).upper
            values.append(problem.scaled_bound(candidate, upper).value)
        assert max(values[1:]) > values[0] * (1 + 2e-3)
        assert max(values) <= trained_objective(problem.inputs, problem.loss.targets, 0.3)

    def test_units_do_not_matter(self) -> None:
        points = []
        for units in ((1.0, 1.0), (1e3, 1e-4)):
            problem = training_problem(2, 8, 3, path_decay=0.4 * units[0] * units[1], units=units)
            candidate = joint_dual_point(problem, deadline=Deadline(20.0), max_iterations=100)
            assert candidate is not None
            points.append(candidate / units[1])
        torch.testing.assert_close(points[0], points[1], rtol=1e-6, atol=1e-9)

    def test_beats_the_rescaled_residual_where_the_relaxation_is_loose(self) -> None:
        problem = training_problem(0, 20, 3, path_decay=0.5)
        candidate = joint_dual_point(problem, deadline=Deadline(20.0), max_iterations=300)
        assert candidate is not None
        residual = problem.dual_candidate(torch.zeros_like(candidate))
        assert proven(problem, candidate) > 1.1 * proven(problem, residual)


class TestDomain:
    def test_huber_bound_is_kept(self) -> None:
        problem = training_problem(3, 10, 3, path_decay=0.02, loss=nn.HuberLoss(delta=0.3))
        candidate = joint_dual_point(problem, deadline=Deadline(20.0))
        assert candidate is not None
        assert float(candidate.abs().max()) <= 0.03 * (1 + 1e-12)
        assert np.isfinite(problem.loss.dual_objective(candidate))
        assert proven(problem, candidate) > 0.0

    def test_huber_bound_is_kept_by_low_rank_factors(self) -> None:
        problem = training_problem(3, 10, 3, path_decay=0.02, loss=nn.HuberLoss(delta=0.3))
        candidate = JointDual(problem, low_rank_rows=0).run(deadline=Deadline(20.0))
        other = joint_dual_point(problem, deadline=Deadline(20.0), max_iterations=300)
        assert candidate is not None
        assert other is not None
        assert float(candidate.abs().max()) <= 0.03 * (1 + 1e-12)
        assert proven(problem, candidate) == pytest.approx(proven(problem, other), rel=1e-2)

    def test_balanced_with_an_output_bias(self) -> None:
        problem = training_problem(4, 10, 3, path_decay=0.3, output_bias=True)
        candidate = joint_dual_point(problem, deadline=Deadline(20.0), max_iterations=100)
        assert candidate is not None
        assert abs(float(candidate.sum())) <= 1e-12

    def test_samples_without_features_keep_their_residual(self) -> None:
        problem = training_problem(5, 6, 3, path_decay=0.3)
        problem.inputs[2] = 0.0
        candidate = joint_dual_point(problem, deadline=Deadline(20.0))
        assert candidate is not None
        assert float(candidate[2]) == float(problem.loss.targets[2])


class TestRefusals:
    def test_absolute_loss(self) -> None:
        problem = training_problem(0, 5, 2, path_decay=0.1, loss=nn.L1Loss())
        assert not JointDual.supports(problem)
        with pytest.raises(ValueError, match="does not support"):
            JointDual(problem)

    def test_too_many_samples(self) -> None:
        assert JointDual.supports(training_problem(0, 3000, 2, path_decay=0.1))
        assert not JointDual.supports(training_problem(0, 3001, 2, path_decay=0.1))

    def test_zero_targets(self) -> None:
        problem = training_problem(0, 5, 2, path_decay=0.1, units=(1.0, 0.0))
        assert joint_dual_point(problem, deadline=Deadline(1.0)) is None

    def test_an_expired_deadline_gives_a_candidate_still(self) -> None:
        problem = training_problem(0, 5, 2, path_decay=0.1)
        candidate = joint_dual_point(problem, deadline=Deadline(0.0))
        assert candidate is not None
        assert proven(problem, candidate) >= 0.0
