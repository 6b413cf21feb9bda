"""What chunks and recomputation keep in memory, what is copied in a step, and how ``"auto"`` chooses."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from torch_strongdual.nn import GatedReLU, ParallelNet, _chunk_size
from torch_strongdual.nn._chunk_size import branches_at_a_time


def peak_bytes(net: nn.Module, inputs: Tensor) -> int:
    """The most that a forward and backward pass has allocated at a time, gradients included."""
    seed = torch.ones_like(net(inputs))
    net.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        net(inputs).backward(seed)
    current = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak


def dense_layers(factor: int, hidden: tuple[int, ...], num_outputs: int) -> list[nn.Module]:
    widths = [3, *[factor * width for width in hidden]]
    linears = [layer for sizes in pairwise(widths) for layer in (nn.Linear(*sizes), nn.ReLU())]
    return [*linears, nn.Linear(widths[-1], num_outputs)]


class TestMemory:
    num_branches, inputs = 16, torch.ones(2048, 3)

    def peak(self, *layers: nn.Module, **options: Any) -> int:
        return peak_bytes(ParallelNet(*layers, num_branches=self.num_branches, **options), self.inputs)

    @pytest.mark.parametrize("num_outputs", [1, 10])
    @pytest.mark.parametrize("hidden", [(8,), (8, 8), (8, 8, 8)])
    def test_peak_is_that_of_one_network_of_the_same_width(self, hidden: tuple[int, ...], num_outputs: int) -> None:
        wide = peak_bytes(nn.Sequential(*dense_layers(self.num_branches, hidden, num_outputs)), self.inputs)
        assert wide > len(hidden) * 4 * self.num_branches * 8 * len(self.inputs)  # all activations, at least
        assert self.peak(*dense_layers(1, hidden, num_outputs)) <= 1.1 * wide

    def test_peak_of_gates_is_that_of_relu(self) -> None:
        gated = self.peak(nn.Linear(3, 8), GatedReLU(3), nn.Linear(8, 1))
        assert gated <= 1.1 * self.peak(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))

    def test_recomputed_chunks_need_memory_for_one_of_them(self) -> None:
        layers, activation = dense_layers(1, (8, 8, 8), 1), 4 * self.num_branches * 8 * len(self.inputs)
        assert self.peak(*layers) > 4 * activation
        assert self.peak(*layers, chunk_size=4, recompute=True) < 2 * activation
        assert self.peak(*layers, chunk_size=1, recompute=True) < activation

    def test_chunks_that_are_kept_save_what_is_not_kept(self) -> None:
        layers, activation = dense_layers(1, (8, 8, 8), 1), 4 * self.num_branches * 8 * len(self.inputs)
        assert self.peak(*layers, chunk_size=4) < self.peak(*layers) - activation


class CopyRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its hook untyped
    """Notes the size of what is copied."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("clone", "copy_", "_to_copy", "cat", "stack", "contiguous"):
            self.sizes.append(result.numel())
        return result


class TestCopies:
    @pytest.mark.parametrize("activation", [nn.ReLU, lambda: GatedReLU(64)])
    def test_no_weights_and_no_activations_are_copied_in_a_step(self, activation: Callable[[], nn.Module]) -> None:
        """Of layers this wide; what is copied are outputs and, where there are several, the weights they are made with."""
        num_samples, num_branches, width, num_outputs = 128, 4, 32, 3
        layers = nn.Linear(64, width), activation(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, num_outputs)
        net = ParallelNet(*layers, num_branches=num_branches)
        inputs, recorder = torch.randn(num_samples, 64), CopyRecorder()
        seed = torch.randn(num_samples, num_outputs)
        with recorder:
            net(inputs).backward(seed)
        inputs_in_float64 = inputs.numel() if net.gate_vectors() else 0
        masks = num_branches * num_samples
        small = max(num_samples * num_outputs, num_branches * num_outputs * width, masks)
        assert small < min(num_branches * width * width, num_branches * width * num_samples)
        assert [size for size in recorder.sizes if size > small] == [inputs_in_float64] * bool(inputs_in_float64)


class TestAuto:
    def chosen(self, num_samples: int, *, width: int = 8, recompute: bool = False, device: str = "cpu") -> int | None:
        layers = nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 1)
        net = ParallelNet(*layers, num_branches=64, device=device)
        inputs = torch.empty(num_samples, 3, device=device)
        return branches_at_a_time("auto", inputs, net._linears, recompute=recompute)

    def test_all_at_once_until_the_largest_activation_is_large(self) -> None:
        num_samples = _chunk_size._LARGE_BYTES // (64 * 16 * 4)
        assert self.chosen(num_samples) is None
        assert self.chosen(0) is None
        assert self.chosen(num_samples + 1) == _chunk_size._CHUNK_BYTES // (16 * 4 * (num_samples + 1)) == 42

    def test_one_branch_at_least(self) -> None:
        assert self.chosen(300_000) == 1

    def test_shapes_without_numbers(self) -> None:
        assert self.chosen(10**9, device="meta") is None

    def test_recomputation_needs_chunks(self) -> None:
        assert self.chosen(10**5, recompute=True) == self.chosen(10**5)

    def test_images_count_places(self) -> None:
        layers = nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)
        net = ParallelNet(*layers, num_branches=64)
        inputs = torch.empty(256, 1, 28, 29)
        expected = _chunk_size._CHUNK_BYTES // (256 * 14 * 15 * 4 * 4)
        assert branches_at_a_time("auto", inputs, net._linears, recompute=False) == expected

    @pytest.mark.parametrize("recompute", [False, True])
    @pytest.mark.parametrize("activation", [nn.ReLU, lambda: GatedReLU(3)])
    def test_is_the_default_and_changes_nothing(
        self, activation: Callable[[], nn.Module], recompute: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        net = ParallelNet(
            nn.Linear(3, 4), activation(), nn.Linear(4, 2), num_branches=5, recompute=recompute, dtype=torch.float64
        )
        inputs = torch.randn(6, 3, dtype=torch.float64)
        expected = net(inputs)
        (expected_gradient,) = torch.autograd.grad(expected.sum(), [net.get_parameter("0.weight")])
        monkeypatch.setattr(_chunk_size, "_LARGE_BYTES", 0)
        monkeypatch.setattr(_chunk_size, "_CHUNK_BYTES", 2 * 4 * 6 * 8)
        shapes: list[int] = []

        kind: Any = type(net.get_submodule("1"))

        def forward(module: nn.Module, hidden: Tensor, *masks: Tensor, plain: Any = kind.forward) -> Any:
            shapes.append(len(hidden))
            return plain(module, hidden, *masks)

        monkeypatch.setattr(kind, "forward", forward)  # not a hook, for which all branches would be evaluated at once
        outputs = net(inputs)
        assert shapes == [2, 2, 1]
        (gradient,) = torch.autograd.grad(outputs.sum(), [net.get_parameter("0.weight")])
        torch.testing.assert_close(outputs, expected)
        torch.testing.assert_close(gradient, expected_gradient)

    def test_compiled_once_for_all_numbers_of_samples(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_chunk_size, "_LARGE_BYTES", 0)
        net = ParallelNet(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), num_branches=5)
        program = torch.export.export(
            net, (torch.randn(4, 3),), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=10**6)},)
        )
        inputs = torch.randn(9, 3)
        torch.testing.assert_close(program.module()(inputs), net(inputs))

    @pytest.mark.filterwarnings("ignore:`torch.jit.trace.*` is deprecated", "ignore::torch.jit.TracerWarning")
    def test_traced_in_one_piece(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_chunk_size, "_LARGE_BYTES", 0)
        net, trace = ParallelNet(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), num_branches=5), vars(torch.jit)["trace"]
        assert branches_at_a_time("auto", torch.zeros(2**18, 3), net._linears, recompute=False) == 1
        assert "aten::split" not in str(trace(net, torch.zeros(2**18, 3)).inlined_graph)
