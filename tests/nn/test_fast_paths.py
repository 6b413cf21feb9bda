"""Every path of the forward and backward pass against loops over branches and places, over all that may change the path."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.nn import GatedReLU, ParallelNet
from torch_strongdual.nn._chunk_size import ChunkSize

from .._typed_torch import backward
from ..references.branch_loops import Step, flatten, gate, kernels, linear, parallel_outputs, pool, rectify


@dataclass(frozen=True)
class Case:
    layers: Callable[[], Sequence[nn.Module]]
    steps: Sequence[Step]
    shape: tuple[int, ...]


CASES = {
    "one_unit": Case(lambda: [nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 1)], [linear("0"), rectify(), linear("2")], (5, 3)),
    "two_layers": Case(
        lambda: [nn.Linear(3, 4, bias=False), nn.LeakyReLU(0.2), nn.Linear(4, 2, bias=False)],
        [linear("0"), rectify(0.2), linear("2")],
        (6, 3),
    ),
    "three_layers": Case(
        lambda: [nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)],
        [linear("0"), rectify(), linear("2"), rectify(), linear("4")],
        (6, 3),
    ),
    "four_layers": Case(
        lambda: [nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 3, bias=False), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)],
        [linear("0"), rectify(), linear("2"), linear("3"), rectify(), linear("5")],
        (7, 3),
    ),
    "gated": Case(lambda: [nn.Linear(3, 4), GatedReLU(3), nn.Linear(4, 2)], [linear("0"), gate("1"), linear("2")], (6, 3)),
    "gated_images": Case(
        lambda: [nn.Flatten(), nn.Linear(6, 3), GatedReLU(6), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)],
        [flatten, linear("1"), gate("2"), linear("3"), rectify(), linear("5")],
        (5, 2, 3),
    ),
    "images": Case(
        lambda: [nn.Conv2d(2, 3, 2, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)],
        [kernels("0"), rectify(), pool(None), flatten, linear("4")],
        (4, 2, 5, 4),
    ),
    "averaged_images": Case(
        lambda: [
            *(nn.Conv2d(1, 3, 2, padding=1), nn.Identity(), nn.LeakyReLU(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            *(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
        ],
        [kernels("0", padding=1), rectify(0.2), pool(None), flatten, linear("5"), rectify(), linear("7")],
        (4, 1, 5, 4),
    ),
    "maxima": Case(
        lambda: [nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)],
        [kernels("0"), rectify(), pool(2, maximum=True), flatten, linear("4")],
        (4, 1, 6, 5),
    ),
    "deep_images": Case(
        lambda: [
            *(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2, stride=2), nn.LeakyReLU(0.1)),
            *(nn.AvgPool2d(1), nn.Flatten(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)),
        ],
        [
            *(kernels("0", padding=1), rectify(), pool(2, maximum=True), kernels("3", stride=2), rectify(0.1)),
            *(pool(1), flatten, linear("7"), rectify(), linear("9")),
        ],
        (3, 2, 5, 4),
    ),
    "signals": Case(
        lambda: [nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(9, 1)],
        [kernels("0", padding=1), rectify(), pool(2), flatten, linear("4")],
        (4, 2, 6),
    ),
}
EVALUATION: list[tuple[ChunkSize, bool]] = [("auto", False), (None, True), (1, True), (2, False), (3, True), (9, False)]


def compare(case: Case, net: ParallelNet, inputs: Tensor, tolerance: float) -> None:
    """Outputs and gradients in the network's dtype against those of the loops in float64."""
    own_inputs = inputs.clone(memory_format=torch.preserve_format).requires_grad_()
    outputs = net(own_inputs)
    seed = torch.randn(outputs.shape)
    backward((outputs * seed.to(outputs.dtype)).sum())
    state = {name: tensor.detach().double().requires_grad_() for name, tensor in net.state_dict().items()}
    loop_inputs = inputs.detach().double().contiguous().requires_grad_()
    last = list(state)[-1]
    named = {("output_bias" if name == last and name.endswith("bias") else name): tensor for name, tensor in state.items()}
    expected = parallel_outputs(case.steps, named, net.num_branches, loop_inputs)
    backward((expected * seed).sum())

    def close(actual: Tensor | None, wanted: Tensor | None) -> None:
        assert actual is not None
        assert wanted is not None
        scale = float(wanted.detach().abs().max()) + 1.0
        torch.testing.assert_close(actual.double(), wanted, rtol=0.0, atol=tolerance * scale)

    close(outputs, expected)
    close(own_inputs.grad, loop_inputs.grad)
    for name, parameter in net.named_parameters():
        close(parameter.grad, state[name].grad)
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("num_branches", [1, 5])
@pytest.mark.parametrize(("chunk_size", "recompute"), EVALUATION)
def test_chunks_and_recomputation(kind: str, num_branches: int, chunk_size: ChunkSize, recompute: bool) -> None:
    case = CASES[kind]
    net = ParallelNet(*case.layers(), num_branches=num_branches, chunk_size=chunk_size, recompute=recompute).double()
    compare(case, net, torch.randn(case.shape, dtype=torch.float64), 1e-13)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize(("chunk_size", "recompute"), [(None, False), (2, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(kind: str, chunk_size: ChunkSize, recompute: bool, dtype: torch.dtype) -> None:
    case = CASES[kind]
    net = ParallelNet(*case.layers(), num_branches=4, chunk_size=chunk_size, recompute=recompute).to(dtype)
    compare(case, net, torch.randn(case.shape).to(dtype), 16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("kind", ["images", "averaged_images", "maxima", "deep_images"])
@pytest.mark.parametrize("num_branches", [1, 4])
@pytest.mark.parametrize(("chunk_size", "recompute"), [(None, False), (2, False), (2, True)])
@pytest.mark.parametrize("formats", ["inputs", "kernels", "both"])
def test_channels_last(kind: str, num_branches: int, chunk_size: ChunkSize, recompute: bool, formats: str) -> None:
    case = CASES[kind]
    net = ParallelNet(*case.layers(), num_branches=num_branches, chunk_size=chunk_size, recompute=recompute).double()
    inputs = torch.randn(case.shape, dtype=torch.float64)
    if formats != "inputs":
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch declares it for tensors only
        assert net.get_parameter("0.weight").flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    if formats != "kernels":
        inputs = inputs.to(memory_format=torch.channels_last)
    compare(case, net, inputs, 1e-13)
    assert copy.deepcopy(net).get_parameter("0.weight").stride() == net.get_parameter("0.weight").stride()


@pytest.mark.parametrize("kind", ["two_layers", "three_layers", "gated"])
def test_strided_inputs(kind: str) -> None:
    case = CASES[kind]
    net = ParallelNet(*case.layers(), num_branches=3).double()
    compare(case, net, torch.randn(3, 12, dtype=torch.float64).T[::2], 1e-13)
