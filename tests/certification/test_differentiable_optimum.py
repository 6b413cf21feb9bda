from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.certification import differentiable_optimum, optimize_to_certificate
from torch_strongdual.errors import InvalidInputError, MissingDependencyError, UnsupportedModelError
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import GatedReLU, ParallelNet

from ..references.convex_program import convex_program_optimum, gated_program_optimum, linear_program_optimum

STRENGTH = 0.4
LOSSES: dict[str, nn.Module] = {
    "squared": HalfSquaredLoss(),
    "huber": nn.HuberLoss(reduction="sum"),
    "logistic": nn.BCEWithLogitsLoss(reduction="sum"),
}


def data(loss: str = "squared") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(10, 2, generator=generator, dtype=torch.float64)
    targets = torch.randn(10, 1, generator=generator, dtype=torch.float64)
    return inputs, (torch.sigmoid(2.0 * targets) if loss == "logistic" else targets)


def build(kind: str, *, bias: bool = False, out_features: int = 1, num_branches: int = 4) -> ParallelNet:
    torch.manual_seed(2)
    middle: dict[str, list[nn.Module]] = {
        "relu": [nn.ReLU()],
        "leaky": [nn.LeakyReLU(0.3)],
        "linear": [],
        "gated": [GatedReLU(2)],
    }
    layers = nn.Linear(2, 1, bias=False), *middle[kind], nn.Linear(1, out_features, bias=bias)
    return ParallelNet(*layers, num_branches=num_branches, dtype=torch.float64)


def solved(net: ParallelNet, inputs: Tensor, targets: Tensor, loss: nn.Module, strength: float = STRENGTH) -> ParallelNet:
    result = optimize_to_certificate(net, inputs, targets, loss=loss, path_decay=strength, rtol=1e-9, time_budget=20.0)
    assert result.certificate.relative_gap <= 1e-7
    return result.net


def true_outputs(kind: str, net: ParallelNet, loss: str, inputs: Tensor, targets: Tensor, strength: float) -> Tensor:
    """Of the global optimum on the training inputs, by an independent program over all patterns (or the net's gates)."""
    arrays, bias = (inputs.numpy(), targets.numpy()), net.output_bias is not None
    if kind == "linear":
        found = linear_program_optimum(*arrays, loss, strength, bias=bias)
    elif kind == "gated":
        masks = net.branch_spec.gate_masks(inputs)
        assert masks is not None
        found = gated_program_optimum(*arrays, masks.numpy(), loss, strength, bias=bias)
    else:
        found = convex_program_optimum(*arrays, loss, strength, slope=0.3 if kind == "leaky" else 0.0, bias=bias)
    return torch.from_numpy(found.outputs)


CASES = [
    ("relu", "squared", False), ("relu", "squared", True), ("relu", "huber", False), ("relu", "logistic", True),
    ("leaky", "squared", True), ("linear", "huber", True), ("gated", "squared", False), ("gated", "logistic", True),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "loss", "bias"), CASES)
def test_derivatives_are_differences_of_the_true_optimum(kind: str, loss: str, bias: bool) -> None:
    """A validation loss of the outputs on the training inputs, which the optimum determines whatever the network."""
    inputs, targets = data(loss)
    net = build(kind, bias=bias)
    optimal = solved(net, inputs, targets, LOSSES[loss])
    generator = torch.Generator().manual_seed(9)
    wanted = torch.randn(10, 1, generator=generator, dtype=torch.float64)
    direction = torch.randn(10, 1, generator=generator, dtype=torch.float64)

    def truth(strength: float, moved: Tensor) -> float:
        return (true_outputs(kind, net, loss, inputs, moved, strength) - wanted).square().sum().item()

    path_decay = torch.tensor(STRENGTH, dtype=torch.float64, requires_grad=True)
    given = targets.clone().requires_grad_()
    optimum = differentiable_optimum(optimal, inputs, given, loss=LOSSES[loss], path_decay=path_decay)
    value = (optimum(inputs) - wanted).square().sum()
    slope, gradient = torch.autograd.grad(value, [path_decay, given])
    assert value.item() == pytest.approx(truth(STRENGTH, targets), rel=1e-4)
    step = 2e-3
    along_strength = (truth(STRENGTH + step, targets) - truth(STRENGTH - step, targets)) / (2 * step)
    assert slope.item() == pytest.approx(along_strength, rel=1e-2)
    along_targets = truth(STRENGTH, targets + step * direction) - truth(STRENGTH, targets - step * direction)
    assert float((gradient * direction).sum()) == pytest.approx(along_targets / (2 * step), rel=1e-2)


@pytest.mark.parametrize("kind", ["relu", "gated"])
def test_on_other_inputs_it_is_the_network_and_the_derivative_its_change(kind: str) -> None:
    inputs, targets = data()
    others = torch.randn(7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    net, step = build(kind, bias=True), 2e-3

    def outputs(strength: float) -> Tensor:
        values: Tensor = solved(net, inputs, targets, HalfSquaredLoss(), strength)(others)
        return values.detach()

    path_decay = torch.tensor(STRENGTH, dtype=torch.float64, requires_grad=True)
    optimal = solved(net, inputs, targets, HalfSquaredLoss())
    optimum = differentiable_optimum(optimal, inputs, targets, loss=HalfSquaredLoss(), path_decay=path_decay)
    torch.testing.assert_close(optimum(others).detach(), optimal(others).detach(), rtol=1e-4, atol=1e-5)
    changes = (outputs(STRENGTH + step) - outputs(STRENGTH - step)) / (2 * step)
    for index in range(len(others)):
        (slope,) = torch.autograd.grad(optimum(others)[index, 0], path_decay, retain_graph=True)
        assert slope.item() == pytest.approx(changes[index].item(), rel=2e-2, abs=2e-3)


def test_the_optimum_changes_by_its_penalty() -> None:
    inputs, targets = data()
    path_decay = torch.tensor(STRENGTH, dtype=torch.float64, requires_grad=True)
    optimal = solved(build("relu"), inputs, targets, HalfSquaredLoss())
    optimum = differentiable_optimum(optimal, inputs, targets, loss=HalfSquaredLoss(), path_decay=path_decay)
    objective = HalfSquaredLoss()(optimum(inputs), targets) + path_decay * optimum.penalty()
    (slope,) = torch.autograd.grad(objective, path_decay)
    assert slope.item() == pytest.approx(optimum.penalty().item(), rel=1e-5)
    assert optimum.penalty().item() == pytest.approx(optimal.path_penalty().item(), rel=1e-4)


def test_a_network_short_of_the_optimum_is_moved_to_that_of_its_patterns() -> None:
    inputs, targets = data()
    optimal = solved(build("relu"), inputs, targets, HalfSquaredLoss())
    arguments: dict[str, Any] = {"loss": HalfSquaredLoss(), "path_decay": STRENGTH}
    expected = differentiable_optimum(optimal, inputs, targets, **arguments)(inputs)
    with torch.no_grad():
        optimal.branch_weights()[0].mul_(0.7)
    torch.testing.assert_close(differentiable_optimum(optimal, inputs, targets, **arguments)(inputs), expected)


def test_extreme_units_and_redundant_features() -> None:
    """Targets times t and inputs times s, one column twice: outputs scale by t."""
    inputs, targets = data()

    def slope(scale: float, factor: float) -> tuple[float, Tensor]:
        wide = torch.cat([inputs, inputs[:, :1]], dim=1) * scale
        torch.manual_seed(2)
        net = ParallelNet(
            nn.Linear(3, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False), num_branches=4, dtype=torch.float64
        )
        strength = STRENGTH * scale * factor
        optimal = solved(net, wide, targets * factor, HalfSquaredLoss(), strength)
        path_decay = torch.tensor(strength, dtype=torch.float64, requires_grad=True)
        optimum = differentiable_optimum(optimal, wide, targets * factor, loss=HalfSquaredLoss(), path_decay=path_decay)
        (found,) = torch.autograd.grad(optimum(wide).square().sum() / factor**2, path_decay)
        return found.item() * scale * factor, optimum(wide).detach() / factor

    plain, scaled = slope(1.0, 1.0), slope(1e-4, 1e5)
    assert scaled[0] == pytest.approx(plain[0], rel=1e-3)
    torch.testing.assert_close(scaled[1], plain[1], rtol=1e-4, atol=1e-5)


def zero_net() -> ParallelNet:
    net = build("relu")
    with torch.no_grad():
        net.branch_weights()[1].zero_()
    return net


def deep_net() -> ParallelNet:
    return ParallelNet(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1), num_branches=2)


@pytest.mark.parametrize(
    ("make_net", "changes", "error", "message"),
    [
        (deep_net, {}, UnsupportedModelError, "two linear layers"),
        (zero_net, {}, InvalidInputError, "All branches"),
        (lambda: build("relu"), {"path_decay": 0.0}, InvalidInputError, "path_decay"),
        (lambda: build("relu"), {"path_decay": torch.ones(2)}, InvalidInputError, "expected a number"),
        (lambda: build("relu"), {"inputs": torch.full((10, 2), math.nan)}, InvalidInputError, "inputs"),
    ],
)
def test_what_has_no_derivative_here_is_named(
    make_net: Callable[[], ParallelNet], changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    inputs, targets = data()
    arguments = {"inputs": inputs, "targets": targets, "loss": nn.MSELoss(), "path_decay": 0.1, **changes}
    with pytest.raises(error, match=message):
        differentiable_optimum(make_net(), **arguments)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cvxpylayers", None)
    monkeypatch.setitem(sys.modules, "cvxpylayers.torch", None)
    with pytest.raises(MissingDependencyError, match="pip install cvxpylayers"):
        differentiable_optimum(build("relu"), *data(), loss=nn.MSELoss(), path_decay=0.1)


def test_branches_of_equal_patterns_are_one() -> None:
    inputs, targets = data()
    optimal = solved(build("relu"), inputs, targets, HalfSquaredLoss())
    arguments: dict[str, Any] = {"loss": HalfSquaredLoss(), "path_decay": STRENGTH}
    expected = differentiable_optimum(optimal, inputs, targets, **arguments)
    optimal.add_branches_([0.5 * weight.detach() for weight in optimal.branch_weights()])
    found = differentiable_optimum(optimal, inputs, targets, **arguments)
    assert len(found.signs) == len(expected.signs) < optimal.num_branches
    torch.testing.assert_close(found(inputs), expected(inputs), rtol=1e-4, atol=1e-5)
