"""The compiled step of PathSGD against the step in operations of torch, and when it is taken."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numba.core import event
from torch import Tensor

from torch_strongdual._compiled_kernel import when_compiled
from torch_strongdual.errors import ShapeError
from torch_strongdual.optim import PathSGD, _compiled_sgd, _path_sgd_kernel, path_sgd

from ..references.path_optimizers import SlowPathSGD
from .branch_problems import branch_group, random_bias, random_layers, relu_loss, stacked, train

OPTIONS: list[dict[str, Any]] = [
    {},
    {"maximize": True},
    {"momentum": 0.9},
    {"momentum": 0.8, "dampening": 0.3},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "nesterov": True, "maximize": True},
    {"momentum": 0.9, "lr": 0.0},
]
SHAPES = ((6, 5, 3), (6, 5), (6, 4, 5), (6, 2, 4, 1, 1))
LAYERS = (0, 0, 1, 2)


@pytest.fixture
def num_compiled(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Small layers are taken too; returns how many steps were."""
    steps: list[None] = []
    run = _compiled_sgd._run

    def counted(*arguments: Any) -> None:
        steps.append(None)
        run(*arguments)

    monkeypatch.setattr(_compiled_sgd, "_SMALLEST", 0)
    monkeypatch.setattr(_compiled_sgd, "_run", counted)
    return lambda: len(steps)


def layers_with_gradients(dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    layers = [(0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype) for shape in SHAPES]
    layers[2][:2] *= 0.1  # these branches die through a hidden layer
    layers[3][4] = 0
    for layer in layers:
        layer.requires_grad_()
        layer.grad = 0.3 * torch.randn(layer.shape, generator=generator, dtype=torch.float64).to(dtype)
    return layers


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_equals_the_functional_step(
    num_compiled: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    accuracy: float,
    options: dict[str, Any],
    num_threads: int,
) -> None:
    monkeypatch.setattr(_compiled_sgd, "_NUMBERS_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    settings: dict[str, Any] = {
        "momentum": 0.0,
        "dampening": 0.0,
        "nesterov": False,
        "maximize": False,
        "lr": 0.02,
        "path_decay": 0.3,
    }
    settings |= options
    ours, expected = layers_with_gradients(dtype), layers_with_gradients(dtype)
    optimizer = PathSGD([{"params": ours, "layer_index": LAYERS}], **settings)
    buffers: list[Tensor | None] = [None] * 4
    generator = torch.Generator().manual_seed(3)
    for _ in range(40):
        for layer, other in zip(ours, expected, strict=True):
            layer.grad = other.grad = 0.3 * torch.randn(layer.shape, generator=generator, dtype=torch.float64).to(dtype)
        optimizer.step()
        path_sgd(expected, [x.grad for x in expected], buffers, layer_index=LAYERS, penalty="product", **settings)
    assert num_compiled() == 40
    for layer, other, buffer in zip(ours, expected, buffers, strict=True):
        torch.testing.assert_close(layer, other, rtol=accuracy, atol=accuracy)
        assert torch.equal(layer == 0, other == 0)
        if buffer is not None:
            torch.testing.assert_close(optimizer.state[layer]["momentum_buffer"], buffer, rtol=accuracy, atol=10 * accuracy)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.8, "dampening": 0.3}, {"momentum": 0.9, "nesterov": True}])
def test_equals_the_slow_reference(num_compiled: Callable[[], int], options: dict[str, Any]) -> None:
    layers, bias = random_layers(), random_bias()
    with torch.no_grad():
        layers[1][:2].mul_(0.1)
    params = [layers[0], bias, *layers[1:]]
    optimizer = PathSGD([{"params": params, "layer_index": LAYERS}], lr=0.02, path_decay=0.3, **options)
    stacks = stacked(layers, bias)
    references = [SlowPathSGD([x[k].numpy() for x in stacks], lr=0.02, path_decay=0.3, **options) for k in range(4)]
    for _ in range(100):
        optimizer.zero_grad()
        torch.autograd.backward(relu_loss(layers, bias))
        grads = stacked([_grad(layer) for layer in layers], _grad(bias))
        optimizer.step()
        for k, reference in enumerate(references):
            reference.step([grad[k].numpy() for grad in grads])
        for found, *expected in zip(stacked(layers, bias), *(reference.layers for reference in references), strict=True):
            np.testing.assert_allclose(found.numpy(), np.stack(expected), rtol=1e-9, atol=1e-11)
    assert num_compiled() == 100
    assert sum(reference.num_collapses for reference in references) > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
def test_what_is_not_finite_shows(num_compiled: Callable[[], int], bad: float) -> None:
    ours, expected = layers_with_gradients(), layers_with_gradients()
    for layers in (ours, expected):
        _grad(layers[0])[1, 0, 0] = bad
        _grad(layers[3])[2] = bad
    PathSGD([{"params": ours, "layer_index": LAYERS}], lr=0.02, path_decay=0.3).step()
    PathSGD([{"params": expected, "layer_index": LAYERS}], lr=0.02, path_decay=0.3, foreach=True).step()
    assert num_compiled() == 1
    for layer, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(layer, other, equal_nan=True)


def test_autograd_learns_of_the_change(num_compiled: Callable[[], int]) -> None:
    layers = random_layers()
    loss = relu_loss(layers)
    for layer in layers:
        layer.grad = torch.ones_like(layer)
    PathSGD([branch_group(layers)], lr=0.02, path_decay=0.3).step()
    assert num_compiled() == 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(loss)


class TestWhenItIsTaken:
    def step(self, layers: list[Tensor], **options: Any) -> None:
        PathSGD([{"params": layers, "layer_index": LAYERS}], **{"lr": 0.02, "path_decay": 0.3, **options}).step()

    @pytest.mark.parametrize(
        "options", [{"penalty": "power"}, {"foreach": True}, {"lr": torch.tensor(0.02)}, {"path_decay": 0.0}]
    )
    def test_not_with_these_options(self, num_compiled: Callable[[], int], options: dict[str, Any]) -> None:
        self.step(layers_with_gradients(), **options)
        assert num_compiled() == 0

    def test_not_for_small_layers(self, num_compiled: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_compiled_sgd, "_SMALLEST", 6 * (15 + 5 + 20 + 8) + 1)
        self.step(layers_with_gradients())
        assert num_compiled() == 0
        monkeypatch.setattr(_compiled_sgd, "_SMALLEST", 6 * (15 + 5 + 20 + 8))
        self.step(layers_with_gradients())
        assert num_compiled() == 1

    def test_not_in_half_precision_or_with_a_frozen_layer(self, num_compiled: Callable[[], int]) -> None:
        self.step(layers_with_gradients(torch.bfloat16))
        layers = layers_with_gradients()
        layers[1].grad = None
        self.step(layers)
        assert num_compiled() == 0

    def test_not_for_other_memory_layouts_and_classes(self, num_compiled: Callable[[], int]) -> None:
        class Marked(Tensor):
            pass

        layers = layers_with_gradients()
        layers[0].grad = _grad(layers[0]).transpose(1, 2).contiguous().transpose(1, 2)
        other = layers_with_gradients()
        other[0].grad = _grad(other[0]).as_subclass(Marked)
        expected = layers_with_gradients()
        for each in (layers, other):
            self.step(each)
        assert num_compiled() == 0
        self.step(expected)
        assert num_compiled() == 1
        for each in (layers, other):
            for found, layer in zip(each, expected, strict=True):
                torch.testing.assert_close(found.as_subclass(Tensor), layer)

    def test_buffers_of_another_shape_are_refused_not_read(self, num_compiled: Callable[[], int]) -> None:
        layers = layers_with_gradients()
        optimizer = PathSGD([{"params": layers, "layer_index": LAYERS}], lr=0.02, path_decay=0.3, momentum=0.9)
        optimizer.step()
        for layer in layers:
            layer.data, layer.grad = torch.cat([layer, layer]).detach(), torch.cat([_grad(layer)] * 2)
        with pytest.raises(ShapeError, match="state of a parameter"):
            optimizer.step()
        assert num_compiled() == 1

    def test_not_while_torch_compiles(self, num_compiled: Callable[[], int]) -> None:
        layers = layers_with_gradients()
        optimizer = PathSGD([{"params": layers, "layer_index": LAYERS}], lr=0.02, path_decay=0.3, momentum=0.9)
        torch.compiler.reset()
        step = torch.compile(lambda: optimizer.step(), fullgraph=True, backend="eager")
        step()
        torch.compiler.reset()
        assert num_compiled() == 0

    def test_changes_between_the_ways_of_stepping(self, num_compiled: Callable[[], int]) -> None:
        layers, expected = random_layers(), random_layers()
        optimizer = PathSGD([branch_group(layers)], lr=0.02, path_decay=0.1, momentum=0.9)
        for foreach in (False, True, False):
            optimizer.param_groups[0]["foreach"] = foreach
            train(optimizer, lambda: relu_loss(layers), 5)
        assert num_compiled() == 10
        train(
            PathSGD([branch_group(expected)], lr=0.02, path_decay=0.1, momentum=0.9, foreach=True),
            lambda: relu_loss(expected),
            15,
        )
        for found, layer in zip(layers, expected, strict=True):
            torch.testing.assert_close(found, layer, rtol=1e-12, atol=1e-13)


def _grad(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


class TestCompilation:
    def test_is_announced_once(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        def compile_two(*arguments: object) -> None:
            for _ in range(2):
                with event.trigger_event("numba:compile", data={}):
                    pass

        _compiled_sgd._kernel.cache_clear()
        monkeypatch.setattr(_path_sgd_kernel, "step_branches", compile_two)
        with caplog.at_level(logging.WARNING):
            assert _compiled_sgd._kernel(torch.float32) is _compiled_sgd._kernel(torch.float32)
        _compiled_sgd._kernel.cache_clear()
        assert [record.name for record in caplog.records] == [_compiled_sgd.__name__]
        assert "PathSGD for this machine, once" in caplog.text

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_for_no_branches_serves_all(self, num_compiled: Callable[[], int], dtype: torch.dtype, momentum: float) -> None:
        """Other types of arguments would be compiled in the first step, and nobody told."""
        _compiled_sgd._kernel(dtype)
        compiled: list[None] = []
        with when_compiled(lambda: compiled.append(None)):
            params = layers_with_gradients(dtype)
            PathSGD([{"params": params, "layer_index": LAYERS}], lr=0.1, path_decay=0.1, momentum=momentum).step()
        assert num_compiled() == 1
        assert not compiled
