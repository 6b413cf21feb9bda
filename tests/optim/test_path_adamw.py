from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.errors import InvalidInputError
from torch_strongdual.functional import PATH_PENALTIES
from torch_strongdual.nn import ParallelNet
from torch_strongdual.optim import PathAdamW, path_adamw

from ..references.path_optimizers import SlowPathAdamW
from ._against_reference import assert_equals_reference
from .branch_problems import branch_group, random_layers, relu_loss, train


@pytest.mark.parametrize("options", [{}, {"betas": (0.8, 0.95), "eps": 1e-3}, {"betas": (0.0, 0.9)}])
@pytest.mark.parametrize("penalty", PATH_PENALTIES)
def test_equals_the_slow_reference(penalty: str, options: dict[str, Any]) -> None:
    assert_equals_reference(PathAdamW, SlowPathAdamW, penalty, options)


@pytest.mark.parametrize("foreach", [True, False])
def test_plain_groups_equal_adam(foreach: bool) -> None:
    ours, stock = random_layers(), random_layers()
    train(PathAdamW([{"params": ours}], lr=0.05, eps=1e-6, foreach=foreach), lambda: relu_loss(ours), 100)
    train(torch.optim.Adam(stock, lr=0.05, eps=1e-6), lambda: relu_loss(stock), 100)
    for a, b in zip(ours, stock, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_step_counts_of_plain_groups_are_on_the_cpu_whatever_the_default_device() -> None:
    weight = torch.ones(3, requires_grad=True)
    optimizer = PathAdamW([weight], lr=0.1)
    weight.grad = torch.ones(3)
    with torch.device("meta"):  # stands for a GPU: a count there would be read back in every step
        optimizer.step()
    assert optimizer.state[weight]["step"].device.type == "cpu"
    assert bool((weight < 1.0).all())


def test_blocks_of_one_entry_without_decay_equal_adam() -> None:
    """A block of one entry has its own second moment, as every entry has in Adam."""
    ours, stock = ([torch.full((5, 1, 1), 0.5, dtype=torch.float64, requires_grad=True) for _ in range(3)] for _ in range(2))
    targets = torch.linspace(-1, 1, 5, dtype=torch.float64)

    def loss(layers: list[Tensor]) -> Tensor:
        return ((layers[0] * layers[1] * layers[2]).flatten() - targets).square().sum()

    train(PathAdamW([branch_group(ours)], lr=0.05), lambda: loss(ours), 100)
    train(torch.optim.Adam(stock, lr=0.05), lambda: loss(stock), 100)
    for a, b in zip(ours, stock, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_functional_form_equals_the_class() -> None:
    ours, raw = random_layers(), random_layers()
    optimizer = PathAdamW([branch_group(ours)], lr=0.05, path_decay=0.1)
    averages = [torch.zeros_like(layer) for layer in raw]
    squares, steps = [torch.zeros(4, dtype=torch.float64) for _ in raw], [torch.zeros(4) for _ in raw]
    for _ in range(5):
        train(optimizer, lambda: relu_loss(ours), 1)
        grads: list[Tensor | None] = [*torch.autograd.grad(relu_loss(raw), raw)]
        path_adamw(
            raw,
            grads,
            averages,
            squares,
            steps,
            layer_index=(0, 1, 2),
            path_decay=0.1,
            penalty="product",
            lr=0.05,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            maximize=False,
        )
    for a, b in zip(ours, raw, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_revival_after_a_long_death_takes_no_large_step() -> None:
    lr = 1e-3
    layers = random_layers(2)
    with torch.no_grad():
        layers[-1].zero_()
    optimizer = PathAdamW([branch_group(layers)], lr=lr, path_decay=1e4)
    train(optimizer, lambda: relu_loss(layers), 50)
    assert layers[-1].count_nonzero() == 0
    train(optimizer, lambda: relu_loss(layers), 500)
    optimizer.param_groups[0]["path_decay"] = 1e-3
    for _ in range(50):
        before = [layer.detach().clone() for layer in layers]
        train(optimizer, lambda: relu_loss(layers), 1)
        for layer, old in zip(layers, before, strict=True):
            root_mean_square = (layer.detach() - old).square().mean(dim=(1, 2)).sqrt()
            assert (root_mean_square <= 2 * lr).all()
    assert (layers[-1].flatten(1).norm(dim=1) > 0).all()


def test_branch_without_data_decays_at_a_bounded_rate() -> None:
    """Its loss gradient is zero in all layers; the penalty alone must not be divided by a vanishing second moment."""
    layers = [torch.full((1, 2, 3), -1.0, dtype=torch.float64), torch.ones(1, 1, 2, dtype=torch.float64)]
    for layer in layers:
        layer.requires_grad_()
    inputs = torch.ones(4, 3, dtype=torch.float64)

    def loss() -> Tensor:
        return (torch.einsum("ni,koi->kno", inputs, layers[0]).relu() @ layers[1].transpose(1, 2)).square().sum()

    optimizer = PathAdamW([branch_group(layers)], lr=0.05, betas=(0.9, 0.99), path_decay=1e-3)
    for _ in range(200):
        before = [layer.detach().clone() for layer in layers]
        train(optimizer, loss, 1)
        for layer, old in zip(layers, before, strict=True):
            assert (layer - old).square().mean().sqrt() <= 2 * 0.05
    assert layers[1].count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_keeps_wide_second_moments(dtype: torch.dtype) -> None:
    layers = random_layers(dtype=dtype)
    optimizer = PathAdamW([branch_group(layers)], lr=0.01, path_decay=0.05)
    before = relu_loss(layers).item()
    train(optimizer, lambda: relu_loss(layers), 60)
    optimizer.load_state_dict(optimizer.state_dict())
    train(optimizer, lambda: relu_loss(layers), 60)
    assert relu_loss(layers).item() < before
    for layer in layers:
        assert layer.dtype == optimizer.state[layer]["exp_avg"].dtype == dtype
        assert optimizer.state[layer]["exp_avg_sq"].dtype == optimizer.state[layer]["step"].dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"betas": (1.0, 0.9)}, r"`betas\[0\]` is 1.0; expected a number in \[0, 1\)"),
        ({"betas": (0.9, -0.1)}, r"`betas\[1\]` is -0.1"),
        ({"betas": 0.9}, "`betas` is 0.9; expected two numbers"),
        ({"eps": -1e-8}, "`eps` is -1e-08; expected a finite number >= 0"),
    ],
)
def test_option_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PathAdamW([branch_group(random_layers())], **options)


def test_a_network_in_place_of_its_groups_is_refused() -> None:
    net = ParallelNet(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1), num_branches=2)
    with pytest.raises(InvalidInputError, match=r"`params` is a ParallelNet; expected .*path_param_groups"):
        PathAdamW(net, lr=0.1)  # type: ignore[arg-type]
