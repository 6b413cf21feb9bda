from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from torch_strongdual.certification import TrainingProblem
from torch_strongdual.certification.certificate import CertificateScope
from torch_strongdual.errors import InvalidInputError
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import GatedReLU, ParallelNet, ParallelWeights


def linear(fan_in: int, fan_out: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(fan_in, fan_out, bias=bias)


def pose(net: ParallelNet, loss: nn.Module, *, path_decay: float = 0.25, penalty: str = "product") -> TrainingProblem:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    targets = torch.randn(6, 1, generator=generator, dtype=torch.float64)
    return TrainingProblem.from_model(net, inputs, targets, loss=loss, path_decay=path_decay, penalty=penalty)


def net_of(bias: bool = False, width: int = 1) -> ParallelNet:
    torch.manual_seed(0)
    return ParallelNet(linear(2, width), nn.ReLU(), linear(width, 1, bias), num_branches=3, dtype=torch.float64)


def exact_objective(net: ParallelNet, problem: TrainingProblem) -> Fraction:
    """Half the sum of squares plus the penalty, in rational arithmetic up to the square roots of the norms (1e-30)."""
    inputs = [[Fraction(float(x)) for x in row] for row in problem.inputs]
    targets = [Fraction(float(y)) for y in problem.loss.targets[:, 0]]
    first, last = (weight.detach() for weight in net.branch_weights())
    outputs = [Fraction(0)] * len(inputs)
    penalty = Fraction(0)
    for k in range(net.num_branches):
        u, v = [Fraction(float(w)) for w in first[k, 0]], Fraction(float(last[k, 0, 0]))
        for i, row in enumerate(inputs):
            outputs[i] += max(sum((a * b for a, b in zip(row, u, strict=True)), Fraction(0)), Fraction(0)) * v
        square = sum((a * a for a in u), Fraction(0)) * v * v
        penalty += Fraction(math.isqrt(int(square * 10**60)) + 1, 10**30)
    loss = sum(((f - y) ** 2 for f, y in zip(outputs, targets, strict=True)), Fraction(0)) / 2
    return loss + Fraction(problem.path_decay) * penalty


def test_primal_value_is_rounded_up_by_no_more_than_rounding() -> None:
    net = net_of()
    problem = pose(net, HalfSquaredLoss())
    value = Fraction(problem.primal(ParallelWeights.from_module(net)).value)
    exact = exact_objective(net, problem)
    assert exact <= value <= exact * (1 + Fraction(1, 10**12))


@pytest.mark.parametrize("penalty", ["product", "power", "l2_path"])
def test_primal_value_uses_the_smallest_equivalent_form(penalty: str) -> None:
    net = net_of(width=2)
    problem = pose(net, HalfSquaredLoss(), penalty=penalty)
    with torch.no_grad():
        kind = "product" if penalty == "power" else penalty
        expected = HalfSquaredLoss()(net(problem.inputs), problem.loss.targets) + 0.25 * net.path_penalty(kind)
    assert problem.primal(ParallelWeights.from_module(net)).value == pytest.approx(float(expected), rel=1e-12)


def test_zero_net_with_a_bias_predicts_the_mean() -> None:
    problem = pose(net_of(bias=True), HalfSquaredLoss())
    targets = problem.loss.targets
    assert problem.null_value() == pytest.approx(float(0.5 * (targets - targets.mean()).square().sum()), rel=1e-12)
    assert float(problem.dual_candidate(torch.zeros_like(targets)).sum().abs()) < 1e-14


def test_scaled_bound_respects_the_norm_it_is_given() -> None:
    problem = pose(net_of(), HalfSquaredLoss())
    candidate = problem.loss.targets
    for norm in (0.3, 3.0, 30.0):
        bound = problem.scaled_bound(candidate, norm)
        assert bound.dual_point is not None
        scale = float(bound.dual_point.norm() / candidate.norm())
        assert scale * norm <= 0.25
        assert bound.dual_norm_upper <= 0.25
        best = min(1.0, 0.25 / norm)
        expected = (best - 0.5 * best * best) * float(candidate.square().sum())
        assert bound.value == pytest.approx(expected, rel=1e-10)
        assert bound.value <= expected


def test_infinite_norm_proves_nothing() -> None:
    problem = pose(net_of(), HalfSquaredLoss())
    bound = problem.scaled_bound(problem.loss.targets, math.inf)
    assert bound.value == -math.inf
    assert bound.dual_point is None


def test_zero_point_proves_that_the_loss_is_not_negative() -> None:
    problem = pose(net_of(), HalfSquaredLoss())
    assert problem.scaled_bound(torch.zeros_like(problem.loss.targets), 0.0).value == pytest.approx(0.0, abs=1e-200)


def test_scope_is_that_of_the_gates() -> None:
    gated = ParallelNet(linear(2, 2), GatedReLU(2), linear(2, 1), num_branches=2, dtype=torch.float64)
    assert pose(gated, HalfSquaredLoss()).scope is CertificateScope.GATED


def test_path_decay_has_to_be_a_positive_number() -> None:
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(InvalidInputError, match="path_decay"):
            pose(net_of(), HalfSquaredLoss(), path_decay=bad)
