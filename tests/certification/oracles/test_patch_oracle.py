"""The dual norm of convolutional branches against references that apply torch's layers kernel by kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.certification import Deadline, DualNormBound, dual_norm_bound
from torch_strongdual.certification.oracles import (
    AutoOracle,
    AutoTwoLayerOracle,
    BoundRequest,
    BoxBranchAndBound,
    DepthRecursion,
    GatedOracle,
    LinearOracle,
    LocalSearch,
    PatchOracle,
)
from torch_strongdual.errors import UnsupportedModelError
from torch_strongdual.nn import branch_spec_of

from ...references.convolution_dual_norm import kernel_value, linear_dual_norm, planar_dual_norm, sampled_dual_norm

Layers = Callable[[], Sequence[nn.Module]]

PLANAR: dict[str, tuple[Layers, tuple[int, ...]]] = {
    "global": (lambda: [nn.Conv2d(1, 1, (1, 2), bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()], (1, 3, 4)),
    "two_channels": (lambda: [nn.Conv2d(2, 1, 1, bias=False), nn.LeakyReLU(0.3), nn.AvgPool2d(3), nn.Flatten()], (2, 3, 3)),
    "bias": (lambda: [nn.Conv1d(1, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()], (1, 6)),
    "padding_stride_dilation": (
        lambda: [
            nn.Conv1d(1, 1, 2, bias=False, padding=3, stride=2, dilation=3),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
        ],
        (1, 7),
    ),
    "local": (lambda: [nn.Conv2d(1, 1, (2, 1), bias=False), nn.ReLU(), nn.AvgPool2d(2, padding=1), nn.Flatten()], (1, 4, 3)),
    "no_pooling": (lambda: [nn.Conv1d(1, 1, 2, bias=False), nn.ReLU(), nn.Flatten()], (1, 4)),
    "uneven": (lambda: [nn.Conv1d(1, 1, 2, bias=False), nn.ReLU(), nn.AdaptiveAvgPool1d(3), nn.Flatten()], (1, 6)),
    "two_pools": (
        lambda: [nn.Conv1d(1, 1, 2, bias=False), nn.ReLU(), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(2), nn.Flatten()],
        (1, 8),
    ),
}
LINEAR: dict[str, tuple[Layers, tuple[int, ...], int]] = {  # with the numbers in a kernel
    "global": (lambda: [nn.Conv2d(2, 1, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()], (2, 4, 5), 9),
    "local": (lambda: [nn.Conv2d(1, 1, 3, padding="same", bias=False), nn.AvgPool2d(2), nn.Flatten()], (1, 4, 5), 9),
    "no_pooling": (lambda: [nn.Conv1d(3, 1, 2, stride=2), nn.Identity(), nn.Flatten()], (3, 6), 7),
    "padded_pool": (lambda: [nn.Conv1d(1, 1, 3), nn.AvgPool1d(3, stride=2, padding=1), nn.Flatten()], (1, 9), 4),
}


def case(layers: Layers, shape: tuple[int, ...], num_outputs: int, seed: int = 0) -> tuple[nn.Sequential, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(5, *shape, generator=generator, dtype=torch.float64)
    duals = torch.randn(5, num_outputs, generator=generator, dtype=torch.float64)
    width = nn.Sequential(*layers()).to(torch.float64)(inputs).shape[1]
    return nn.Sequential(*layers(), nn.Linear(width, num_outputs)), inputs, duals


def check_witnesses(found: DualNormBound, layers: Layers, inputs: Tensor, duals: Tensor) -> None:
    """Each witness is a unit branch that attains its value, evaluated by torch's layers."""
    assert found.witnesses
    for witness in found.witnesses:
        first, last = witness.weights
        assert float(torch.linalg.matrix_norm(first)) == pytest.approx(1.0, abs=1e-12)
        assert float(torch.linalg.matrix_norm(last)) == pytest.approx(1.0, abs=1e-12)
        assert kernel_value(first[0], layers, inputs, duals) == pytest.approx(witness.value, rel=1e-9)
        assert witness.value <= found.upper


class TestAgainstReferences:
    @pytest.mark.parametrize("name", PLANAR)
    @pytest.mark.parametrize("num_outputs", [1, 2])
    def test_two_numbers_a_kernel(self, name: str, num_outputs: int) -> None:
        layers, shape = PLANAR[name]
        branch, inputs, duals = case(layers, shape, num_outputs)
        found = dual_norm_bound(branch, inputs, duals, rtol=1e-6)
        lowest, highest = planar_dual_norm(layers, inputs, duals)
        assert lowest <= found.upper <= highest
        assert found.upper <= found.lower * (1 + 2e-6)
        check_witnesses(found, layers, inputs, duals)

    @pytest.mark.parametrize("name", LINEAR)
    @pytest.mark.parametrize("num_outputs", [1, 3])
    def test_linear_branches_are_exact(self, name: str, num_outputs: int) -> None:
        layers, shape, size = LINEAR[name]
        branch, inputs, duals = case(layers, shape, num_outputs)
        found = dual_norm_bound(branch, inputs, duals)
        expected = linear_dual_norm(layers, inputs, duals, size)
        assert expected * (1 - 1e-12) <= found.upper <= expected * (1 + 1e-9)
        assert found.lower == pytest.approx(expected, rel=1e-9)
        assert found.stats["oracle"] == "LinearOracle"
        check_witnesses(found, layers, inputs, duals)

    @pytest.mark.parametrize("seed", range(3))
    def test_larger_kernels_are_above_sampled_branches(self, seed: int) -> None:
        def layers() -> list[nn.Module]:
            return [nn.Conv2d(1, 1, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]

        branch, inputs, duals = case(layers, (1, 4, 4), 2, seed)
        found = dual_norm_bound(branch, inputs, duals, rtol=1e-2)
        assert sampled_dual_norm(layers, inputs, duals, 5, 5000, seed) <= found.upper <= 1.011 * found.lower
        check_witnesses(found, layers, inputs, duals)

    def test_several_channels_have_the_dual_norm_of_one(self) -> None:
        layers, shape = PLANAR["global"]
        _, inputs, duals = case(layers, shape, 2)
        wide = nn.Sequential(
            nn.Conv2d(1, 3, (1, 2), bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
        )
        found = dual_norm_bound(wide, inputs, duals, rtol=1e-6)
        assert found.upper == pytest.approx(planar_dual_norm(layers, inputs, duals)[0], rel=1e-3)
        assert [tuple(weight.shape) for weight in found.witnesses[0].weights] == [(3, 2), (2, 3)]


class TestMerging:
    def test_repeated_patches_are_merged(self) -> None:
        layers, _ = PLANAR["global"]
        branch = nn.Sequential(*layers(), nn.Linear(1, 1))
        images = torch.zeros(6, 1, 8, 8, dtype=torch.float64)
        images[:, :, 2:4, 2:4] = torch.arange(1.0, 7.0)[:, None, None, None]
        duals = torch.randn(6, 1, dtype=torch.float64)
        found = dual_norm_bound(branch, images, duals, rtol=1e-9)
        assert found.stats["patches"] == 6 * 56
        assert found.stats["distinct_patches"] == 3  # (0, 1), (1, 1) and (1, 0), times a number
        lowest, highest = planar_dual_norm(layers, images, duals)
        assert lowest <= found.upper <= highest

    def test_zero_images(self) -> None:
        layers, shape = PLANAR["global"]
        branch, inputs, duals = case(layers, shape, 1)
        assert dual_norm_bound(branch, 0 * inputs, duals).upper <= 1e-300
        assert dual_norm_bound(branch, inputs, 0 * duals).upper <= 1e-300

    @pytest.mark.parametrize("scale", [1e-140, 1e140])
    def test_magnitudes(self, scale: float) -> None:
        layers, shape = PLANAR["local"]
        branch, inputs, duals = case(layers, shape, 2)
        expected = dual_norm_bound(branch, inputs, duals, rtol=1e-6)
        found = dual_norm_bound(branch, scale * inputs, duals, rtol=1e-6)
        assert found.upper / scale == pytest.approx(expected.upper, rel=1e-9)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_non_finite_numbers_prove_nothing(self, value: float) -> None:
        layers, shape = PLANAR["global"]
        branch, inputs, duals = case(layers, shape, 1)
        broken = inputs.clone()
        broken[0, 0, 0, 0] = value
        assert dual_norm_bound(branch, broken, duals).upper == math.inf
        assert dual_norm_bound(branch, inputs, duals * value).upper == math.inf


class TestRequests:
    def test_target_and_floor_are_those_of_the_caller(self) -> None:
        layers, shape = PLANAR["global"]
        branch, inputs, duals = case(layers, shape, 1)
        exact = dual_norm_bound(branch, inputs, duals, rtol=1e-9).upper
        oracle, spec = PatchOracle(BoxBranchAndBound()), branch_spec_of(branch)
        state = oracle.init(spec, inputs)
        request = BoundRequest(rtol=1e-9, target=1.5 * exact, deadline=Deadline(20.0))
        assert exact * (1 - 1e-9) <= oracle.bound(state, duals, request).upper <= 1.5 * exact
        request = BoundRequest(rtol=1e-9, floor=1.2 * exact, deadline=Deadline(20.0))
        assert exact * (1 - 1e-9) <= oracle.bound(state, duals, request).upper <= 1.2 * exact


class TestRefusals:
    @pytest.mark.parametrize(
        "oracle", [LinearOracle(), GatedOracle(), AutoTwoLayerOracle(), DepthRecursion(AutoTwoLayerOracle()), LocalSearch()]
    )
    def test_dense_oracles_name_the_cure(self, oracle: LinearOracle) -> None:
        layers, shape = PLANAR["global"]
        branch, inputs, duals = case(layers, shape, 1)
        with pytest.raises(UnsupportedModelError, match=r"is for dense branches; PatchOracle\("):
            dual_norm_bound(branch, inputs, duals, oracle=oracle)

    def test_dense_branches(self) -> None:
        dense = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1))
        with pytest.raises(UnsupportedModelError, match="PatchOracle is for convolutional branches"):
            dual_norm_bound(dense, torch.ones(2, 2), torch.ones(2, 1), oracle=PatchOracle(LinearOracle()))

    def test_what_the_inner_oracle_refuses(self) -> None:
        layers, shape = PLANAR["global"]
        branch, inputs, duals = case(layers, shape, 1)
        with pytest.raises(UnsupportedModelError, match="LinearOracle is for branches without activations"):
            dual_norm_bound(branch, inputs, duals, oracle=PatchOracle(LinearOracle()))
        assert AutoOracle().supports(branch_spec_of(branch)) is None

    def test_l2_path(self) -> None:
        layers, shape = PLANAR["global"]
        branch, inputs, duals = case(layers, shape, 1)
        with pytest.raises(UnsupportedModelError, match="has a convolution; use 'product'"):
            dual_norm_bound(branch, inputs, duals, penalty="l2_path")
