from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.errors import ShapeError, UnsupportedModelError
from torch_strongdual.functional.branch_features import branch_outputs
from torch_strongdual.nn import ParallelNet, ParallelWeights, parallel_weights

from ..references.exact_branches import Matrix, exact_outputs
from ._networks import BRANCHES, HOMOGENEOUS, looped_outputs, make_net


def exact(net: ParallelNet, inputs: Tensor) -> Matrix:
    spec = net.branch_spec
    matrix = inputs.double().numpy()
    if spec.input_bias:
        matrix = np.concatenate([matrix, np.ones((len(matrix), 1))], axis=1)
    gates: list[np.ndarray | None] = []
    for activation in spec.activations:
        mask = None
        for vectors in activation.gate_vectors:
            opened = (inputs.double() @ vectors.T >= 0).T.numpy()
            mask = opened if mask is None else mask & opened
        gates.append(mask)
    return exact_outputs(
        matrix,
        [w.detach().double().numpy() for w in net.branch_weights()],
        [None if b is None else b.detach().double().numpy() for b in net.hidden_biases()],
        spec.negative_slopes,
        gates,
        None if net.output_bias is None else net.output_bias.detach().double().numpy(),
    )


class TestOutputs:
    @pytest.mark.parametrize("kind", BRANCHES)
    def test_error_bound_holds_against_exact_arithmetic(self, kind: str) -> None:
        net, inputs = make_net(kind, 3), torch.randn(4, 3)
        weights = ParallelWeights.from_module(net)
        outputs, error = weights.outputs(inputs), weights.output_error(inputs)
        for row, bounds, truth in zip(outputs.tolist(), error.tolist(), exact(net, inputs), strict=True):
            for value, bound, true_value in zip(row, bounds, truth, strict=True):
                assert abs(Fraction(value) - true_value) <= Fraction(bound)
        assert (error < 1e-12).all()  # and it is of use

    @pytest.mark.parametrize("scale", [1e150, 1e-160, 1e-308])
    def test_error_bound_holds_at_extreme_sizes(self, scale: float) -> None:
        """Products of weights of size 1e-160 underflow on their way to outputs that do not."""
        net = make_net("three_layers", 3)
        with torch.no_grad():
            net.get_parameter("0.weight").mul_(scale)
            net.get_parameter("2.weight").mul_(math.sqrt(scale) if scale < 1 else 1.0)
            net.get_parameter("4.weight").mul_(1 / max(scale, 1e-300))
        inputs = torch.randn(4, 3, dtype=torch.float64)
        weights = ParallelWeights.from_module(net)
        outputs, error = weights.outputs(inputs), weights.output_error(inputs)
        for row, bounds, truth in zip(outputs.tolist(), error.tolist(), exact(net, inputs), strict=True):
            for value, bound, true_value in zip(row, bounds, truth, strict=True):
                assert abs(Fraction(value) - true_value) <= Fraction(bound)

    @pytest.mark.parametrize("zero_layer", [0, 1])
    def test_branches_that_are_zero_make_no_error(self, zero_layer: int) -> None:
        net = ParallelNet(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 2), num_branches=2, dtype=torch.float64)
        inputs, second = torch.randn(4, 3), net.get_parameter("2.weight")
        with torch.no_grad():
            (net.get_parameter("0.weight") if zero_layer == 0 else second).zero_()
        weights = ParallelWeights.from_module(net)
        assert torch.equal(weights.outputs(inputs), net.get_parameter("2.bias").detach().expand(4, 2))
        assert not weights.output_error(inputs).any()
        with torch.no_grad():  # one branch that is not is enough
            net.get_parameter("0.weight")[1], second[1] = 1.0, 1.0
        assert bool((ParallelWeights.from_module(net).output_error(inputs) > 0.0).all())

    def test_error_bound_covers_cancellation(self) -> None:
        """Two branches that cancel: the output is of rounding size, the bound of the size of the terms."""
        net = ParallelNet(nn.Linear(3, 50), nn.ReLU(), nn.Linear(50, 1, bias=False), num_branches=2, dtype=torch.float64)
        with torch.no_grad():
            for name in ("0.weight", "0.bias", "2.weight"):
                net.get_parameter(name)[1] = net.get_parameter(name)[0]
            net.get_parameter("2.weight")[1] *= -1
        weights, inputs = ParallelWeights.from_module(net), torch.randn(30, 3)
        assert (weights.outputs(inputs).abs() <= weights.output_error(inputs)).all()

    @pytest.mark.parametrize("kind", BRANCHES)
    @pytest.mark.parametrize("budget", [1, 60, 2**22])
    def test_chunks_do_not_matter(self, kind: str, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(parallel_weights, "_CHUNK_NUMBERS", budget)
        net, inputs = make_net(kind, 7), torch.randn(5, 3, dtype=torch.float64)
        outputs = ParallelWeights.from_module(net).outputs(inputs)
        torch.testing.assert_close(outputs, looped_outputs(net, inputs).detach())

    @pytest.mark.parametrize("kind", HOMOGENEOUS)
    def test_agrees_with_branch_outputs(self, kind: str) -> None:
        net, inputs = make_net(kind, 4), torch.randn(5, 3)
        weights, spec = ParallelWeights.from_module(net), net.branch_spec
        expected = branch_outputs(spec.branch_inputs(inputs), weights.weights, spec.negative_slopes, spec.gate_masks(inputs))
        if weights.output_bias is not None:
            expected = expected + weights.output_bias
        torch.testing.assert_close(weights.outputs(inputs), expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_lower_precision_nets_are_evaluated_in_float64(self, dtype: torch.dtype) -> None:
        net = make_net("gated_deep", 3, dtype=dtype)
        inputs = torch.randn(6, 3)
        outputs = ParallelWeights.from_module(net).outputs(inputs)
        assert outputs.dtype == torch.float64
        torch.testing.assert_close(outputs, looped_outputs(net.double(), inputs.double()).detach())

    def test_flatten_and_empty(self) -> None:
        net = ParallelNet(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2), num_branches=3)
        weights = ParallelWeights.from_module(net)
        inputs = torch.randn(5, 2, 3)
        torch.testing.assert_close(weights.outputs(inputs), net(inputs).detach().double(), rtol=1e-5, atol=1e-5)
        assert weights.outputs(inputs[:0]).shape == (0, 2)
        assert weights.output_error(inputs[:0]).shape == (0, 2)

    def test_nan_weights_give_nan(self) -> None:
        net = make_net("two_layers")
        with torch.no_grad():
            net.get_parameter("2.weight")[0, 0, 0] = math.nan
        outputs = ParallelWeights.from_module(net).outputs(torch.ones(2, 3))
        assert outputs[:, 0].isnan().all()
        assert outputs[:, 1].isfinite().all()

    def test_wrong_shape(self) -> None:
        weights = ParallelWeights.from_module(make_net("two_layers"))
        for function in (weights.outputs, weights.output_error):
            with pytest.raises(ShapeError, match=r"expected \(num_samples, 3\)"):
                function(torch.zeros(2, 4))


class TestFromModule:
    def test_parts(self) -> None:
        net = make_net("three_layers_biases", 4, dtype=torch.float32)
        weights = ParallelWeights.from_module(net)
        assert weights.num_branches == 4
        for copied, original in zip(weights.weights, net.branch_weights(), strict=True):
            assert copied.dtype == torch.float64
            assert not copied.requires_grad
            assert torch.equal(copied, original.double())
        hidden, output = net.hidden_biases()[1], net.output_bias
        assert weights.hidden_biases[0] is None
        assert hidden is not None
        assert output is not None
        assert weights.hidden_biases[1] is not None
        assert torch.equal(weights.hidden_biases[1], hidden.double())
        assert weights.output_bias is not None
        assert torch.equal(weights.output_bias, output.double())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_is_a_copy(self, dtype: torch.dtype) -> None:
        net = make_net("gated_deep", 2, dtype=dtype)
        weights = ParallelWeights.from_module(net)
        before = weights.outputs(torch.ones(2, 3))
        with torch.no_grad():
            for tensor in net.state_dict().values():
                tensor.zero_()
        assert torch.equal(weights.outputs(torch.ones(2, 3)), before)
        assert before.count_nonzero()

    def test_sequential(self) -> None:
        sequential = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
        inputs = torch.randn(5, 3, dtype=torch.float64)
        torch.testing.assert_close(ParallelWeights.from_module(sequential).outputs(inputs), sequential(inputs).detach())

    def test_refuses_other_modules(self) -> None:
        with pytest.raises(UnsupportedModelError, match="Conv2d has no branches"):
            ParallelWeights.from_module(nn.Conv2d(1, 1, 1))


def test_product_norms() -> None:
    net = make_net("three_layers_biases", 3)
    norms = ParallelWeights.from_module(net).product_norms()
    for k in range(3):
        branch = net.branch(k)
        weight_norms = [torch.linalg.norm(branch.get_parameter(f"{layer}.weight")).item() for layer in (0, 2, 4)]
        first = math.hypot(weight_norms[0], torch.linalg.norm(branch.get_parameter("0.bias")).item())
        expected = first * weight_norms[1] * weight_norms[2]
        assert norms[k].item() == pytest.approx(expected, rel=1e-12)
