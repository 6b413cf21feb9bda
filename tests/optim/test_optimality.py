"""The path optimizers reach, and rest at, the solutions of the penalised problem."""

from __future__ import annotations

import math
from typing import Any

import cvxpy
import numpy as np
import pytest
import torch
from torch import Tensor

from torch_strongdual.functional import path_penalty
from torch_strongdual.optim import PathAdamW, PathSGD

from ..references.nuclear_norm import nuclear_norm_objective, nuclear_norm_optimum
from .branch_problems import MAKERS, MakeOptimizer, branch_group, random_layers, train

PATH_DECAY = 0.3


def linear_problem() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(20, 3, generator=generator, dtype=torch.float64) / math.sqrt(20)
    noise = 0.3 * torch.randn(20, 2, generator=generator, dtype=torch.float64) / math.sqrt(20)
    return inputs, inputs @ torch.randn(3, 2, generator=generator, dtype=torch.float64) * 2 + noise


LINEAR_PROBLEM = linear_problem()


def linear_loss(layers: list[Tensor]) -> Tensor:
    inputs, targets = LINEAR_PROBLEM
    maps = layers[0]
    for layer in layers[1:]:
        maps = torch.einsum("koh,khi->koi", layer, maps)
    return 0.5 * (inputs @ maps.sum(dim=0).T - targets).square().sum()


def objective(layers: list[Tensor]) -> float:
    with torch.no_grad():
        return (linear_loss(layers) + PATH_DECAY * path_penalty(layers).sum()).item()


@pytest.fixture(scope="module")
def optimum() -> float:
    inputs, targets = (tensor.numpy() for tensor in LINEAR_PROBLEM)
    return nuclear_norm_optimum(inputs, targets, PATH_DECAY)


def test_the_reference_agrees_with_cvxpy(optimum: float) -> None:
    inputs, targets = (tensor.numpy() for tensor in LINEAR_PROBLEM)
    solution = cvxpy.Variable((3, 2))
    residual = cvxpy.sum_squares(inputs @ solution - targets) / 2
    problem = cvxpy.Problem(cvxpy.Minimize(residual + PATH_DECAY * cvxpy.normNuc(solution)))
    problem.solve(solver=cvxpy.CLARABEL)
    assert problem.value == pytest.approx(optimum, rel=1e-7)
    assert nuclear_norm_objective(inputs, targets, np.asarray(solution.value), PATH_DECAY) >= optimum * (1 - 1e-11)


@pytest.mark.parametrize(
    ("make", "options", "num_layers"),
    [
        (PathSGD, {"lr": 0.06, "momentum": 0.9}, 2),
        (PathSGD, {"lr": 0.06, "momentum": 0.9}, 4),
        (PathSGD, {"lr": 0.06, "momentum": 0.9, "nesterov": True}, 3),
        (PathAdamW, {"lr": 0.02, "betas": (0.9, 0.99)}, 2),
        (PathAdamW, {"lr": 0.02, "betas": (0.9, 0.99)}, 3),
        (PathAdamW, {"lr": 0.02, "betas": (0.9, 0.99)}, 4),
    ],
    ids=["sgd-2", "sgd-4", "nesterov-3", "adamw-2", "adamw-3", "adamw-4"],
)
def test_deep_linear_net_reaches_the_nuclear_norm_optimum(
    make: MakeOptimizer, options: dict[str, Any], num_layers: int, optimum: float
) -> None:
    layers = random_layers(num_layers, 6, scale=0.4)
    train(make([branch_group(layers)], path_decay=PATH_DECAY, **options), lambda: linear_loss(layers), 600)
    assert objective(layers) >= optimum * (1 - 1e-11)
    assert objective(layers) <= optimum * (1 + 1e-6)


@pytest.mark.parametrize("weight_decay", [PATH_DECAY / 10, PATH_DECAY / 3, PATH_DECAY])
def test_stock_adamw_at_three_layers_does_not(weight_decay: float, optimum: float) -> None:
    layers = random_layers(3, 6, scale=0.4)
    optimizer = torch.optim.AdamW(layers, lr=0.02, weight_decay=weight_decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)  # no remaining oscillation to blame
    for _ in range(600):
        train(optimizer, lambda: linear_loss(layers), 1)
        scheduler.step()
    assert objective(layers) > optimum * (1 + 1e-3)


def one_sample_optimum(scale: float) -> tuple[list[Tensor], Tensor, float]:
    """Exact solution for one sample ``x``, target ``y > 0``: ``f(x) = y - beta / ||x||``, in one branch aligned with ``x``.

    ``scale`` is the norm of its first layer (any will do). Three more branches are dead: one that points away from the
    sample, one at a right angle to it, one inside the dual constraint.
    """
    sample, target, beta = torch.tensor([0.6, -0.8, 1.1], dtype=torch.float64), 2.0, PATH_DECAY
    length = sample.norm()
    right_angle = torch.tensor([0.8, 0.6, 0.0], dtype=torch.float64)
    rows = torch.stack([scale * sample / length, -sample, right_angle, sample + right_angle])
    first = rows[:, None, :].clone()
    last = torch.zeros(4, 1, 1, dtype=torch.float64)
    last[0] = (target - beta / length) / (scale * length)
    return [first.requires_grad_(), last.requires_grad_()], sample, target


def one_sample_loss(layers: list[Tensor], sample: Tensor, target: float) -> Tensor:
    hidden = torch.einsum("khi,i->kh", layers[0], sample).relu()
    return 0.5 * (torch.einsum("koh,kh->o", layers[1], hidden) - target).square().sum()


OPTIONS_AT_REST: dict[str, list[dict[str, Any]]] = {
    "PathSGD": [
        {"lr": 0.05},
        {"lr": 0.05, "momentum": 0.9},
        {"lr": 0.05, "momentum": 0.9, "nesterov": True},
        {"lr": 0.05, "momentum": 0.5, "dampening": 0.5},
    ],
    "PathAdamW": [{"lr": 0.01}, {"lr": 0.01, "betas": (0.0, 0.9)}],
}
AT_REST = [(maker, options) for maker in MAKERS for options in OPTIONS_AT_REST[maker.__name__]]


class TestExactSolutionOfOneSample:
    @pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
    @pytest.mark.parametrize(("make", "options"), AT_REST)
    def test_is_kept(self, make: MakeOptimizer, options: dict[str, Any], scale: float) -> None:
        layers, sample, target = one_sample_optimum(scale)
        before = [layer.detach().clone() for layer in layers]
        optimizer = make([branch_group(layers)], path_decay=PATH_DECAY, **options)
        train(optimizer, lambda: one_sample_loss(layers, sample, target), 20)
        for layer, old in zip(layers, before, strict=True):
            torch.testing.assert_close(layer.detach(), old, rtol=0, atol=1e-13)
        assert layers[1][1:].count_nonzero() == 0

    def test_is_left_by_decoupled_decay(self) -> None:
        balanced = math.sqrt(one_sample_optimum(1.0)[0][1][0].item())
        layers, sample, target = one_sample_optimum(balanced)  # where weight decay is the gradient of the product form
        live = [layer.detach()[0].clone() for layer in layers]
        optimizer = torch.optim.AdamW(layers, lr=0.01, weight_decay=PATH_DECAY)
        train(optimizer, lambda: one_sample_loss(layers, sample, target), 1)
        assert (layers[0].detach()[0] - live[0]).abs().max() > 1e-3
        assert (layers[1].detach()[0] - live[1]).abs().max() > 1e-3

    @pytest.mark.parametrize(("make", "options"), AT_REST)
    def test_is_not_kept_at_another_decay(self, make: MakeOptimizer, options: dict[str, Any]) -> None:
        layers, sample, target = one_sample_optimum(1.0)
        before = layers[1].detach().clone()
        train(
            make([branch_group(layers)], path_decay=1.1 * PATH_DECAY, **options),
            lambda: one_sample_loss(layers, sample, target),
            20,
        )
        assert (layers[1].detach() - before).abs().max() > 1e-4


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("smallest", ["first", "last"])
def test_useless_branches_become_exactly_zero(make: MakeOptimizer, smallest: str) -> None:
    """A branch is removed through its last layer whichever of its layers reaches zero first, and keeps its hidden layer."""
    layers = random_layers(2, 8)
    with torch.no_grad():
        layers[0 if smallest == "first" else 1].mul_(0.1)
    optimizer = make([branch_group(layers)], lr=0.02, path_decay=2.0)  # above the norm of the data: the zero net is optimal
    train(optimizer, lambda: linear_loss(layers), 100)
    assert layers[1].count_nonzero() == 0
    assert (layers[0].flatten(1).norm(dim=1) > 1e-3).all()
    train(make([branch_group(layers)], lr=0.02, path_decay=1e-3), lambda: linear_loss(layers), 1)
    assert (layers[1].flatten(1).norm(dim=1) > 0).all()
