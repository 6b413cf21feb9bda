"""Convolution, activation and global average in one, against torch's modules one after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from torch_strongdual.functional import averaged_convolution as module
from torch_strongdual.functional.averaged_convolution import averaged_convolution
from torch_strongdual.functional.convolved_outputs import ConvolutionGeometry

GEOMETRIES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((5, 1, 7, 6), (3, 2), {}),
    ((5, 2, 7, 6), (2, 3), {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}),
    ((5, 2, 7, 6), (2, 3), {"padding": "same", "dilation": (2, 1)}),
    ((5, 1, 9), (4,), {}),
    ((5, 3, 9), (2,), {"padding": "same", "dilation": (3,)}),
    ((5, 2, 9), (3,), {"stride": (2,), "padding": "valid"}),
    ((5, 1, 3, 3), (3, 3), {}),
]


def geometry_of(options: dict[str, Any], dimension: int) -> ConvolutionGeometry:
    ones, zeros = (1,) * dimension, (0,) * dimension
    return ConvolutionGeometry(**{"stride": ones, "padding": zeros, "dilation": ones, **options})


def reference(
    inputs: Tensor, kernels: Tensor, bias: Tensor | None, *, negative_slope: float, geometry: ConvolutionGeometry
) -> Tensor:
    hidden = functional.leaky_relu(geometry.convolve(inputs, kernels, bias, 1), negative_slope)
    return hidden.flatten(2).mean(dim=2)


@pytest.fixture(params=[1, 60, 10**6])
def block_numbers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks of a channel and a sample, of several of them, and one block."""
    monkeypatch.setattr(module, "_NUMBERS", request.param)
    return int(request.param)


def problem(
    shape: tuple[int, ...], kernel: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (shape, (6, shape[1], *kernel), (6,))
    tensors = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes)
    inputs, kernels, bias = tensors
    return inputs, kernels, bias


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("negative_slope", [0.0, 0.2])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("shape", "kernel", "options"), GEOMETRIES)
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_values_and_gradients(
    block_numbers: int,
    dtype: torch.dtype,
    accuracy: float,
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    options: dict[str, Any],
    has_bias: bool,
    negative_slope: float,
) -> None:
    inputs, kernels, bias = problem(shape, kernel, dtype)
    variables = (inputs, kernels, bias)[: 2 + has_bias]
    settings: dict[str, Any] = {"negative_slope": negative_slope, "geometry": geometry_of(options, len(kernel))}
    given = (inputs, kernels, bias if has_bias else None)
    outputs, expected = averaged_convolution(*given, **settings), reference(*given, **settings)
    torch.testing.assert_close(outputs, expected, rtol=accuracy, atol=accuracy)
    seed = torch.randn_like(expected)
    gradients = torch.autograd.grad(outputs, variables, seed, create_graph=True)
    wanted = torch.autograd.grad(expected, variables, seed, create_graph=True)
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=accuracy, atol=accuracy)
    # second derivatives: the kernels' gradient by the inputs, and the other way round
    for own, other, by in ((gradients[1], wanted[1], inputs), (gradients[0], wanted[0], kernels)):
        pull = torch.randn_like(own)
        (second,), (other_second,) = (torch.autograd.grad(g, by, pull, retain_graph=True) for g in (own, other))
        torch.testing.assert_close(second, other_second, rtol=accuracy, atol=10 * accuracy)


def test_only_sums_are_kept_for_the_gradient_of_the_weights() -> None:
    inputs, kernels, bias = problem((5, 1, 40, 40), (3, 3))
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        averaged_convolution(inputs.detach(), kernels, bias, negative_slope=0.0, geometry=geometry_of({}, 2))
    assert max(kept) == 5 * 10 * 6


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch itself loads scripted decompositions
def test_forward_mode_and_transforms(block_numbers: int) -> None:
    inputs, kernels, bias = (tensor.detach() for tensor in problem((5, 2, 7, 6), (2, 3)))
    settings: dict[str, Any] = {"negative_slope": 0.1, "geometry": geometry_of({}, 2)}
    found: list[Tensor] = []
    for function in (averaged_convolution, reference):

        def whole(*given: Tensor, function: Any = function) -> Tensor:
            return torch.as_tensor(function(*given, **settings))

        found.append(torch.func.jvp(whole, (inputs, kernels, bias), (inputs.cos(), kernels.cos(), bias.cos()))[1])

        def one(sample: Tensor, weight: Tensor, function: Any = function) -> Tensor:
            return torch.as_tensor(function(sample[None], weight, bias, **settings)).square().sum()

        found.append(torch.func.vmap(torch.func.grad(one, argnums=1), (0, None))(inputs, kernels))
        found.append(torch.func.vmap(torch.func.grad(one, argnums=0), (0, None))(inputs, kernels))
        found.append(torch.func.hessian(lambda weight, one=one: one(inputs[0], weight))(kernels))
    for own, expected in zip(found[:4], found[4:], strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-11, atol=1e-11)


def test_what_is_not_finite_shows_and_no_samples_are_none(block_numbers: int) -> None:
    inputs, kernels, bias = (tensor.detach() for tensor in problem((5, 1, 7, 6), (2, 3)))
    settings: dict[str, Any] = {"negative_slope": 0.0, "geometry": geometry_of({}, 2)}
    inputs[2, 0, 3, 3], inputs[4, 0, 0, 0] = float("nan"), float("inf")
    finite = averaged_convolution(inputs, kernels, bias, **settings).isfinite().all(dim=1)
    assert finite.tolist() == [True, True, False, True, False]
    assert averaged_convolution(inputs[:0], kernels, bias, **settings).shape == (0, 6)
    kernels[3] = float("nan")
    assert averaged_convolution(inputs[:1], kernels, bias, **settings).isnan()[0].tolist() == [False] * 3 + [True] + [False] * 2
