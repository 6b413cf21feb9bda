from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from torch_strongdual.functional import PATH_PENALTIES, path_penalty
from torch_strongdual.optim import PathSGD, path_sgd

from ..references.path_optimizers import SlowPathSGD
from ._against_reference import assert_equals_reference
from .branch_problems import branch_group, random_bias, random_layers, relu_loss, train

OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.8, "dampening": 0.3},
    {"momentum": 0.9, "nesterov": True},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("penalty", PATH_PENALTIES)
def test_equals_the_slow_reference(penalty: str, options: dict[str, Any]) -> None:
    assert_equals_reference(PathSGD, SlowPathSGD, penalty, options)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("has_branches", [True, False])
def test_without_decay_equals_sgd_exactly(has_branches: bool, options: dict[str, Any]) -> None:
    ours, stock = random_layers(), random_layers()
    group = branch_group(ours) if has_branches else {"params": ours}
    train(PathSGD([group], lr=0.05, **options), lambda: relu_loss(ours), 100)
    train(torch.optim.SGD(stock, lr=0.05, **options), lambda: relu_loss(stock), 100)
    assert all(torch.equal(a, b) for a, b in zip(ours, stock, strict=True))


def test_vanishing_decay_is_continuous() -> None:
    """The code for branches, entered at any positive decay, agrees with SGD too."""
    ours, stock = random_layers(), random_layers()
    train(PathSGD([branch_group(ours)], lr=0.05, momentum=0.9, path_decay=1e-300), lambda: relu_loss(ours), 100)
    train(torch.optim.SGD(stock, lr=0.05, momentum=0.9), lambda: relu_loss(stock), 100)
    for a, b in zip(ours, stock, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_functional_form_equals_the_class() -> None:
    ours, raw = random_layers(), random_layers()
    optimizer = PathSGD([branch_group(ours)], lr=0.05, momentum=0.9, path_decay=0.1)
    buffers: list[Tensor | None] = [None] * 3
    for _ in range(5):
        train(optimizer, lambda: relu_loss(ours), 1)
        grads: list[Tensor | None] = [*torch.autograd.grad(relu_loss(raw), raw)]
        path_sgd(
            raw,
            grads,
            buffers,
            layer_index=(0, 1, 2),
            path_decay=0.1,
            penalty="product",
            lr=0.05,
            momentum=0.9,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
    assert all(torch.equal(a, b) for a, b in zip(ours, raw, strict=True))


def test_buffer_holds_the_whole_step_at_constant_learning_rate() -> None:
    """``W <- W - lr * b`` in the last layer too: what makes the fixed points right with momentum."""
    layers = random_layers()
    optimizer = PathSGD([branch_group(layers)], lr=0.05, momentum=0.9, path_decay=0.1)
    for _ in range(50):
        before = [layer.detach().clone() for layer in layers]
        train(optimizer, lambda: relu_loss(layers), 1)
        for layer, old in zip(layers, before, strict=True):
            torch.testing.assert_close(
                layer.detach(), old - 0.05 * optimizer.state[layer]["momentum_buffer"], atol=1e-13, rtol=0
            )


def test_layer_with_a_frozen_bias_takes_the_gradient_of_the_penalty() -> None:
    """The proximal map is that of the whole layer; with a part of it fixed the penalty is smooth there and differentiated."""
    layers, bias = random_layers(2), random_bias().requires_grad_(False)
    optimizer = PathSGD([{"params": [layers[0], bias, layers[1]], "layer_index": (0, 0, 1)}], lr=0.05, path_decay=0.1)
    stacked = [torch.cat([layers[0], bias[:, :, None]], dim=2), layers[1]]
    (expected,) = torch.autograd.grad(relu_loss(layers, bias) + 0.1 * path_penalty(stacked).sum(), layers[0])
    expected = layers[0].detach() - 0.05 * expected
    train(optimizer, lambda: relu_loss(layers, bias), 1)
    torch.testing.assert_close(layers[0].detach(), expected, rtol=1e-13, atol=1e-14)


def test_zero_learning_rate_changes_nothing_and_stays_finite() -> None:
    layers = random_layers()
    before = [layer.detach().clone() for layer in layers]
    optimizer = PathSGD([branch_group(layers)], lr=0.0, momentum=0.9, path_decay=0.1)
    train(optimizer, lambda: relu_loss(layers), 3)
    assert all(torch.equal(a, b) for a, b in zip(layers, before, strict=True))
    assert all(state["momentum_buffer"].isfinite().all() for state in optimizer.state.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": -0.5}, "`momentum` is -0.5; expected a finite number >= 0"),
        ({"dampening": -1.0}, "`dampening` is -1.0"),
        ({"nesterov": True}, "`nesterov` is True with momentum 0.0"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "dampening 0.1; expected a positive momentum and dampening 0"),
    ],
)
def test_option_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PathSGD([branch_group(random_layers())], **options)
