"""Derivatives of optimal networks with several outputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.datasets import load_iris
from torch import Tensor, nn

from torch_strongdual.certification import (
    DifferentiableOptimum,
    TrainingProblem,
    differentiable_optimum,
    max_path_decay,
    optimize_to_certificate,
)
from torch_strongdual.certification._derivatives.factor_optimum import factor_optimum
from torch_strongdual.certification._derivatives.kink_multipliers import kink_multipliers
from torch_strongdual.certification._restricted.scaled_loss import ScaledLoss
from torch_strongdual.certification._working_branches import WorkingBranches
from torch_strongdual.errors import InvalidInputError, NotDifferentiableError, UnsupportedLossError
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import ParallelNet, ParallelWeights

from ..references.convex_program import gated_program_optimum, linear_program_optimum
from . import test_differentiable_optimum as one_output

STRENGTH = 0.4


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(kind: str, out_features: int, *, bias: bool = False) -> ParallelNet:
    return one_output.build(kind, bias=bias, out_features=out_features, num_branches=3)


def solved(
    net: ParallelNet, inputs: Tensor, targets: Tensor, loss: nn.Module, strength: float = STRENGTH, rtol: float = 1e-3
) -> ParallelNet:
    return optimize_to_certificate(net, inputs, targets, loss=loss, path_decay=strength, rtol=rtol, time_budget=20.0).net


def leaf(strength: float = STRENGTH) -> Tensor:
    return torch.tensor(strength, dtype=torch.float64, requires_grad=True)


def reached(net: ParallelNet, inputs: Tensor, targets: Tensor, loss: nn.Module, strength: float) -> DifferentiableOptimum:
    """The global optimum, trained anew: its objective lies between the proven bound and what was trained."""
    result = optimize_to_certificate(net, inputs, targets, loss=loss, path_decay=strength, rtol=1e-5, time_budget=20.0)
    optimum = differentiable_optimum(result.net, inputs, targets, loss=loss, path_decay=strength)
    objective = float(loss(optimum(inputs), targets) + strength * optimum.penalty())
    assert result.certificate.relative_gap <= 1e-5
    assert result.certificate.dual_bound <= objective <= result.certificate.primal_value * (1.0 + 1e-12)
    return optimum


@pytest.mark.parametrize(
    ("loss", "out_features", "seed"),
    [
        ("squared", 2, 4),
        ("squared", 3, 5),
        ("cross-entropy", 2, 2),
        pytest.param("cross-entropy", 3, 3, marks=pytest.mark.slow),
    ],
)
def test_derivatives_are_differences_of_the_optimum_trained_anew(loss: str, out_features: int, seed: int) -> None:
    inputs, targets = draw(8, 2, seed=seed), draw(8, out_features, seed=seed + 100)
    module: nn.Module = HalfSquaredLoss()
    direction = draw(8, out_features, seed=9)
    if loss == "cross-entropy":
        module, targets = nn.CrossEntropyLoss(reduction="sum"), torch.softmax(2.0 * targets, dim=1)
        direction = direction * targets * (1.0 - targets)
    others, weights = draw(7, 2, seed=8), draw(7, out_features, seed=7)
    net = solved(build("relu", out_features), inputs, targets, module, rtol=1e-5)

    def measured(optimum: DifferentiableOptimum) -> Tensor:
        return (optimum(others) * weights).sum() + optimum(inputs).square().sum()

    def truth(strength: float, moved: Tensor) -> float:
        return measured(reached(net, inputs, moved, module, strength)).item()

    path_decay, given = leaf(), targets.clone().requires_grad_()
    optimum = differentiable_optimum(net, inputs, given, loss=module, path_decay=path_decay)
    slope, gradient = torch.autograd.grad(measured(optimum), [path_decay, given])
    step = 1e-4
    along_strength = (truth(STRENGTH + step, targets) - truth(STRENGTH - step, targets)) / (2 * step)
    assert slope.item() == pytest.approx(along_strength, rel=1e-5)
    along_targets = truth(STRENGTH, targets + step * direction) - truth(STRENGTH, targets - step * direction)
    assert float((gradient * direction).sum()) == pytest.approx(along_targets / (2 * step), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "loss", "bias"),
    [("linear", "squared", False), ("linear", "softmax", True), ("gated", "squared", True), ("gated", "logistic", False)],
)
def test_convex_architectures_follow_an_independent_program(kind: str, loss: str, bias: bool) -> None:
    """Nuclear norm regression, which a cone program solves; centred outputs, for softmax does not see the others."""
    inputs, targets = draw(10, 2, seed=4), draw(10, 2, seed=5)
    modules: dict[str, nn.Module] = {
        "squared": HalfSquaredLoss(),
        "softmax": nn.CrossEntropyLoss(reduction="sum"),
        "logistic": nn.BCEWithLogitsLoss(reduction="sum"),
    }
    targets = {"squared": targets, "softmax": targets.softmax(dim=1), "logistic": (3.0 * targets).sigmoid()}[loss]
    net = build(kind, 2, bias=bias)
    masks = net.branch_spec.gate_masks(inputs)
    weights = draw(10, 2, seed=3)
    weights = weights - weights.mean(dim=1, keepdim=True)

    def truth(strength: float) -> float:
        arrays = inputs.numpy(), targets.numpy()
        found = (
            linear_program_optimum(*arrays, loss, strength, bias=bias)
            if masks is None
            else gated_program_optimum(*arrays, masks.numpy(), loss, strength, bias=bias)
        )
        return float((torch.from_numpy(found.outputs) * weights).sum())

    path_decay = leaf()
    optimal = solved(net, inputs, targets, modules[loss])
    optimum = differentiable_optimum(optimal, inputs, targets, loss=modules[loss], path_decay=path_decay)
    value = (optimum(inputs) * weights).sum()
    (slope,) = torch.autograd.grad(value, path_decay)
    step = 5e-3
    assert value.item() == pytest.approx(truth(STRENGTH), abs=1e-4)
    assert slope.item() == pytest.approx((truth(STRENGTH + step) - truth(STRENGTH - step)) / (2 * step), rel=2e-3)


def test_linear_networks_on_orthonormal_inputs_threshold_singular_values() -> None:
    targets = draw(3, 3, seed=1)
    left, sizes, right = torch.linalg.svd(targets)
    strength = float(sizes[1] + sizes[2]) / 2
    net = ParallelNet(nn.Linear(3, 1, bias=False), nn.Linear(1, 3, bias=False), num_branches=3, dtype=torch.float64)
    inputs, path_decay, loss = torch.eye(3, dtype=torch.float64), leaf(strength), HalfSquaredLoss()
    optimum = differentiable_optimum(
        solved(net, inputs, targets, loss, strength), inputs, targets, loss=loss, path_decay=path_decay
    )
    assert optimum.num_branches == 2
    torch.testing.assert_close(optimum(inputs), (left[:, :2] * (sizes[:2] - strength)) @ right[:2])
    for i in range(3):
        for j in range(3):
            (slope,) = torch.autograd.grad(optimum(inputs)[i, j], path_decay, retain_graph=True)
            assert slope.item() == pytest.approx(-(left[:, :2] @ right[:2])[i, j].item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "loss", "bias"),
    [
        ("relu", HalfSquaredLoss(), False), ("relu", nn.HuberLoss(reduction="sum"), False),
        ("relu", nn.BCEWithLogitsLoss(reduction="sum"), True), ("leaky", nn.MSELoss(reduction="sum"), True),
        ("linear", nn.HuberLoss(reduction="sum"), True), ("gated", HalfSquaredLoss(), False),
    ],
)  # fmt: skip
def test_one_output_agrees_with_the_cone_program(kind: str, loss: nn.Module, bias: bool) -> None:
    inputs, targets = draw(10, 2, seed=4), draw(10, 1, seed=5)
    targets = (3.0 * targets).sigmoid() if isinstance(loss, nn.BCEWithLogitsLoss) else targets
    net = solved(build(kind, 1, bias=bias), inputs, targets, loss)
    others, weights = draw(7, 2, seed=8), draw(7, 1, seed=7)

    def by_factors(path_decay: Tensor, given: Tensor) -> DifferentiableOptimum:
        problem = TrainingProblem.from_model(net, inputs, targets, loss=loss, path_decay=STRENGTH)
        branches = WorkingBranches.of_network(ParallelWeights.from_module(net))
        return factor_optimum(problem, branches, ScaledLoss.of(problem.loss, given), path_decay)

    def by_program(path_decay: Tensor, given: Tensor) -> DifferentiableOptimum:
        return differentiable_optimum(net, inputs, given, loss=loss, path_decay=path_decay)

    found: list[tuple[Tensor, ...]] = []
    for way in (by_factors, by_program):
        path_decay, given = leaf(), targets.clone().requires_grad_()
        optimum = way(path_decay, given)
        value = (optimum(others) * weights).sum()
        gradients = torch.autograd.grad(value, [path_decay, given])
        found.append((optimum(others).detach(), optimum.penalty().detach(), *gradients))
    for factors, program in zip(*found, strict=True):
        torch.testing.assert_close(factors, program, rtol=1e-5, atol=1e-5 * float(program.abs().max()))


@pytest.mark.parametrize(
    ("kind", "loss", "bias"),
    [
        ("leaky", nn.HuberLoss(reduction="sum"), True),
        ("relu", nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 0.5])), True),
        ("relu", nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]), label_smoothing=0.2), False),
    ],
)
def test_every_derivative_is_that_of_the_forward_pass(kind: str, loss: nn.Module, bias: bool) -> None:
    inputs, targets = draw(5, 2, seed=4), draw(5, 2, seed=6)
    if not isinstance(loss, nn.HuberLoss):
        targets = targets.sigmoid()
    strength = 0.05 if loss.reduction == "mean" else STRENGTH
    net = solved(build(kind, 2, bias=bias), inputs, targets, loss, strength)

    def outputs(path_decay: Tensor, given: Tensor) -> Tensor:
        return differentiable_optimum(net, inputs, given, loss=loss, path_decay=path_decay)(inputs)

    assert torch.autograd.gradcheck(outputs, (leaf(strength), targets.requires_grad_()), eps=1e-4, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("loss", [HalfSquaredLoss(), nn.CrossEntropyLoss(reduction="sum")])
def test_the_optimum_changes_by_its_penalty(loss: nn.Module) -> None:
    inputs, targets = draw(8, 2, seed=4), torch.softmax(draw(8, 3, seed=5), dim=1)
    path_decay = leaf(0.2)
    net = solved(build("relu", 3, bias=True), inputs, targets, loss, 0.2)
    optimum = differentiable_optimum(net, inputs, targets, loss=loss, path_decay=path_decay)
    objective = loss(optimum(inputs), targets) + path_decay * optimum.penalty()
    (slope,) = torch.autograd.grad(objective, path_decay)
    assert slope.item() == pytest.approx(optimum.penalty().item(), rel=1e-10)


def test_scaling_and_repeated_samples() -> None:
    """Each sample again, three times as long, is ten times the loss; targets times t and inputs times s scale outputs by t."""
    inputs, targets = draw(8, 2, seed=4), draw(8, 2, seed=5)
    net = solved(build("relu", 2), inputs, targets, HalfSquaredLoss())

    def slope(net: ParallelNet, inputs: Tensor, targets: Tensor, strength: float) -> tuple[float, Tensor]:
        path_decay = leaf(strength)
        optimum = differentiable_optimum(net, inputs, targets, loss=HalfSquaredLoss(), path_decay=path_decay)
        (found,) = torch.autograd.grad(optimum(inputs).square().sum(), path_decay)
        return found.item(), optimum(inputs).detach()

    plain = slope(net, inputs, targets, STRENGTH)
    twice = slope(net, torch.cat([inputs, 3.0 * inputs]), torch.cat([targets, 3.0 * targets]), 10.0 * STRENGTH)
    assert twice[0] == pytest.approx(plain[0], rel=1e-8)
    torch.testing.assert_close(twice[1][:8], plain[1])
    small = copy.deepcopy(net)
    with torch.no_grad():
        small.branch_weights()[0].mul_(1e9)
    scaled = slope(small, inputs * 1e-4, targets * 1e5, STRENGTH * 10.0)
    assert scaled[0] * 1e-9 == pytest.approx(plain[0], rel=1e-8)
    torch.testing.assert_close(scaled[1] * 1e-5, plain[1])


def vanishing() -> dict[str, Any]:
    return {"path_decay": 1e3}


def touching() -> dict[str, Any]:
    """The second sample holds the branch on its kink with no force at all."""
    targets = torch.tensor([[2.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    return {"inputs": torch.eye(2, dtype=torch.float64), "targets": targets}


def absolute() -> dict[str, Any]:
    return {"loss": nn.L1Loss()}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (vanishing, InvalidInputError, "max_path_decay"),
        (touching, NotDifferentiableError, "kink"),
        (absolute, UnsupportedLossError, "absolute"),
    ],
)
def test_what_has_no_derivative_is_named(changes: Callable[[], dict[str, Any]], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"inputs": draw(8, 2, seed=4), "targets": draw(8, 2, seed=5), "loss": HalfSquaredLoss()}
    arguments = {"path_decay": STRENGTH, **arguments, **changes()}
    net = optimize_to_certificate(
        build("relu", 2), arguments["inputs"], arguments["targets"], loss=HalfSquaredLoss(), path_decay=STRENGTH
    ).net
    with pytest.raises(error, match=message):
        differentiable_optimum(net, **arguments)


def test_inputs_that_say_nothing_are_named() -> None:
    inputs, targets = torch.zeros(8, 2, dtype=torch.float64), draw(8, 2, seed=5)
    with pytest.raises(InvalidInputError, match="All `inputs` are zero"):
        differentiable_optimum(build("relu", 2), inputs, targets, loss=HalfSquaredLoss(), path_decay=STRENGTH)


def test_a_derivative_of_the_derivative_is_refused() -> None:
    inputs, targets = draw(8, 2, seed=4), draw(8, 2, seed=5)
    net, path_decay = solved(build("relu", 2), inputs, targets, HalfSquaredLoss()), leaf()
    optimum = differentiable_optimum(net, inputs, targets, loss=HalfSquaredLoss(), path_decay=path_decay)
    (slope,) = torch.autograd.grad(optimum(inputs).sum(), path_decay, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.backward()  # type: ignore[no-untyped-call]
    assert math.isfinite(slope.item())


@pytest.mark.parametrize("fraction", [0.03, 0.02])
def test_kinks_of_dependent_samples_hold_a_first_layer_together(fraction: float) -> None:
    """Two columns of iris, rounded to a tenth: three and more kinks meet in lines."""
    data = load_iris()
    chosen = torch.randperm(150, generator=torch.Generator().manual_seed(0))[:90]
    inputs, targets = torch.from_numpy(data.data[:, :2])[chosen], torch.from_numpy(data.target).long()[chosen]
    inputs = (inputs - inputs.mean(0)) / inputs.std(0, correction=0)
    torch.manual_seed(0)
    net = ParallelNet(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 3), num_branches=1, dtype=torch.float64)
    loss, others = nn.CrossEntropyLoss(), torch.randn(20, 2, dtype=torch.float64)
    strength = fraction * max_path_decay(net, inputs, targets, loss=loss).lower

    def optimum(path_decay: float | Tensor) -> Tensor:
        plain = float(path_decay.detach()) if isinstance(path_decay, Tensor) else path_decay
        found = optimize_to_certificate(net, inputs, targets, loss=loss, path_decay=plain, rtol=1e-5)
        at = differentiable_optimum(found.net, inputs, targets, loss=loss, path_decay=path_decay)
        return nn.functional.log_softmax(at(others), dim=1)[:, 0].mean()

    path_decay = torch.tensor(strength, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(optimum(path_decay), path_decay)
    step = 1e-4 * strength
    difference = (optimum(strength + step) - optimum(strength - step)).item() / (2 * step)
    assert slope.item() == pytest.approx(difference, rel=1e-4)


def test_forces_of_dependent_kinks_are_chosen_within_what_they_can_hold() -> None:
    normals = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.8, 0.0]], dtype=torch.float64)
    jumps = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    wanted = torch.tensor([0.9, 0.2, 0.3], dtype=torch.float64)
    pull = (wanted * jumps) @ normals + torch.tensor([0.0, 0.0, 7.0], dtype=torch.float64)  # the rest is along the line
    found = kink_multipliers(normals, jumps, pull, 2)
    torch.testing.assert_close(((found * jumps) @ normals)[:2], pull[:2])
    assert float(torch.minimum(found, 1.0 - found).min()) >= 0.1 - 1e-9
    outside = kink_multipliers(normals, jumps, 100.0 * pull, 2)
    assert float(outside.max()) > 1.0
    torch.testing.assert_close(kink_multipliers(normals[:2], jumps[:2], pull, 2), pull[:2] / jumps[:2])
