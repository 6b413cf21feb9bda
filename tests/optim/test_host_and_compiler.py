"""A step never asks the host for a number, compiles as one graph, and takes scaled and clipped gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torch_strongdual.functional import PATH_PENALTIES
from torch_strongdual.optim import PathAdamW, PathSGD

from .._typed_torch import backward
from .branch_problems import branch_group, random_bias, random_layers, relu_loss, train

CASES = [
    pytest.param(PathSGD, {}, id="sgd"),
    pytest.param(PathSGD, {"momentum": 0.9, "nesterov": True}, id="nesterov"),
    pytest.param(PathSGD, {"momentum": 0.9, "dampening": 0.5}, id="dampened"),
    pytest.param(PathAdamW, {}, id="adamw"),
]


class _NoReading(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its hook untyped
    """Fails where a number of a tensor is read by the host, which would stall a GPU and break a CUDA graph."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = str(func)
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "masked_select", "equal.default")), name
        return func(*args, **(kwargs or {}))


def _no_reading() -> TorchDispatchMode:
    return _NoReading()  # type: ignore[no-untyped-call]


def test_the_reading_is_seen() -> None:
    with _no_reading(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        bool(torch.ones(()) > 0)


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("penalty", PATH_PENALTIES)
@pytest.mark.parametrize(("make", "options"), CASES)
def test_no_number_is_read_by_the_host(make: Any, options: dict[str, Any], penalty: str, foreach: bool) -> None:
    layers, bias = random_layers(), random_bias()
    group = {"params": [layers[0], bias, *layers[1:]], "layer_index": (0, 0, 1, 2)}
    optimizer = make([group], lr=torch.tensor(0.01), path_decay=0.1, penalty=penalty, foreach=foreach, **options)
    for _ in range(2):
        backward(relu_loss(layers, bias))
        with _no_reading():
            optimizer.step()


@pytest.mark.parametrize(
    ("make", "options", "penalty"),
    [
        (PathSGD, {"momentum": 0.9, "nesterov": True}, "product"),
        (PathSGD, {"momentum": 0.9, "dampening": 0.5}, "power"),
        (PathAdamW, {}, "product"),
        (PathAdamW, {}, "l2_path"),
    ],
)
def test_compiles_as_one_graph(make: Any, options: dict[str, Any], penalty: str) -> None:
    eager, compiled = random_layers(), random_layers()
    plain = [random_bias(), random_bias()]
    optimizers = [
        make([branch_group(layers, path_decay=0.3, penalty=penalty), {"params": [offset]}], lr=0.02, **options)
        for layers, offset in zip((eager, compiled), plain, strict=True)
    ]
    torch.compiler.reset()
    step = torch.compile(lambda: optimizers[1].step(), fullgraph=True, backend="eager")
    for _ in range(4):
        for layers, offset in zip((eager, compiled), plain, strict=True):
            torch.autograd.backward(relu_loss(layers) + offset.square().sum())
        optimizers[0].step()
        step()
    torch.compiler.reset()
    for expected, found in zip(eager, compiled, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    # torch counts the steps of plain groups in float32 when it compiles
    torch.testing.assert_close(plain[1], plain[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("make", "options"), CASES)
def test_scaled_gradients_give_the_same_trajectory(make: Any, options: dict[str, Any]) -> None:
    ours, other = random_layers(dtype=torch.float32), random_layers(dtype=torch.float32)
    train(make([branch_group(other)], lr=0.02, path_decay=0.1, **options), lambda: relu_loss(other), 5)
    optimizer = make([branch_group(ours)], lr=0.02, path_decay=0.1, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    for _ in range(5):
        optimizer.zero_grad()
        backward(scaler.scale(relu_loss(ours)))
        scaler.step(optimizer)
        scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(ours, other, strict=True))  # powers of two are undone exactly


@pytest.mark.parametrize(("make", "options"), CASES)
def test_clipping_limits_the_loss_gradient_only(make: Any, options: dict[str, Any]) -> None:
    ours, other = random_layers(), random_layers()
    pair = [make([branch_group(layers)], lr=0.02, path_decay=0.1, **options) for layers in (ours, other)]
    for _ in range(3):
        for optimizer, layers in zip(pair, (ours, other), strict=True):
            optimizer.zero_grad()
            backward(relu_loss(layers))
        torch.nn.utils.clip_grad_norm_(ours, 0.05)
        gradients = [_gradient(layer) for layer in other]
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        assert norm > 0.05
        for gradient in gradients:
            gradient.mul_(0.05 / norm)
        for optimizer in pair:
            optimizer.step()
    for a, b in zip(ours, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)  # torch divides by the norm plus 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize(("make", "options"), CASES)
def test_runs_in_a_cuda_graph(make: Any, options: dict[str, Any]) -> None:
    captured, eager = ([layer.detach().cuda().requires_grad_() for layer in random_layers()] for _ in range(2))
    pair = [make([branch_group(layers)], lr=0.02, path_decay=0.1, **options) for layers in (captured, eager)]
    for layers in (captured, eager):
        for layer in layers:
            layer.grad = torch.full_like(layer, 0.1)
    for optimizer in pair:
        optimizer.step()  # makes the state
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pair[0].step()
    for _ in range(3):
        graph.replay()
        pair[1].step()
    for a, b in zip(captured, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad
