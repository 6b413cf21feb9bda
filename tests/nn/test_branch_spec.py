from __future__ import annotations

import math

import pytest
import torch

from torch_strongdual.errors import InvalidInputError, ShapeError
from torch_strongdual.nn import BranchActivation, BranchSpec

RELU, IDENTITY, LEAKY = BranchActivation(), BranchActivation(negative_slope=1.0), BranchActivation(negative_slope=0.25)


def gated(*vectors: torch.Tensor, negative_slope: float = 1.0) -> BranchActivation:
    return BranchActivation(negative_slope=negative_slope, gate_vectors=vectors)


class TestActivation:
    def test_kinds(self) -> None:
        gate = gated(torch.ones(1, 3))
        assert (RELU.is_identity, IDENTITY.is_identity, LEAKY.is_identity, gate.is_identity) == (False, True, False, False)
        assert (RELU.is_gated, gate.is_gated) == (False, True)

    def test_names(self) -> None:
        vector = torch.ones(1, 3)
        assert [str(a) for a in (RELU, IDENTITY, LEAKY)] == ["ReLU", "Identity", "LeakyReLU(0.25)"]
        assert str(gated(vector)) == "GatedReLU"
        assert str(gated(vector, vector, negative_slope=0.0)) == "ReLU -> GatedReLU -> GatedReLU"


class TestArchitecture:
    def test_properties(self) -> None:
        spec = BranchSpec(widths=(3, 4, 9, 2), activations=(RELU, LEAKY), input_bias=True, output_bias=True)
        assert (spec.num_layers, spec.in_features, spec.out_features, spec.hidden_widths) == (3, 4, 2, (4, 9))
        assert spec.negative_slopes == (0.0, 0.25)
        assert spec.l2_path_factor == math.sqrt(36)
        assert not spec.is_gated
        assert not spec.is_linear
        assert str(spec) == "Linear(3, 4) -> ReLU -> Linear(4, 9) -> LeakyReLU(0.25) -> Linear(9, 2)"
        assert BranchSpec(widths=(3, 4, 1), activations=(IDENTITY,)).is_linear

    @pytest.mark.parametrize(
        ("widths", "activations", "message"),
        [
            ((3,), (), "`widths` is"),
            ((3, 0, 1), (RELU,), "all >= 1"),
            ((3, 4, 1), (), "`activations` has 0 entries; expected 1"),
        ],
    )
    def test_refusals(self, widths: tuple[int, ...], activations: tuple[BranchActivation, ...], message: str) -> None:
        with pytest.raises(ShapeError, match=message):
            BranchSpec(widths=widths, activations=activations)


class TestInputs:
    def test_column_of_ones_and_flatten(self) -> None:
        spec = BranchSpec(widths=(4, 2, 1), activations=(RELU,), input_bias=True, flatten=True)
        inputs = torch.arange(8, dtype=torch.float32).reshape(2, 2, 2)
        matrix = spec.branch_inputs(inputs)
        assert matrix.dtype == torch.float64
        assert matrix.tolist() == [[0, 1, 2, 3, 1], [4, 5, 6, 7, 1]]
        assert BranchSpec(widths=(2, 2, 1), activations=(RELU,)).branch_inputs(torch.ones(0, 2)).shape == (0, 2)

    @pytest.mark.parametrize("flatten", [False, True])
    @pytest.mark.parametrize("shape", [(4,), (), (2, 3), (0, 5)])
    def test_wrong_shapes(self, flatten: bool, shape: tuple[int, ...]) -> None:
        spec = BranchSpec(widths=(4, 2, 1), activations=(gated(torch.ones(1, 4)),), flatten=flatten)
        for function in (spec.branch_inputs, spec.gate_masks):
            with pytest.raises(ShapeError, match=r"`inputs` have shape"):
                function(torch.zeros(shape))

    def test_more_dimensions_without_flatten(self) -> None:
        with pytest.raises(ShapeError, match=r"expected \(num_samples, 4\)"):
            BranchSpec(widths=(4, 2, 1), activations=(RELU,)).branch_inputs(torch.zeros(2, 3, 4))

    def test_complex(self) -> None:
        with pytest.raises(InvalidInputError, match="complex64"):
            BranchSpec(widths=(4, 2, 1), activations=(RELU,)).branch_inputs(torch.zeros(2, 4, dtype=torch.complex64))


class TestGateMasks:
    def test_none_without_gates(self) -> None:
        spec = BranchSpec(widths=(4, 2, 1), activations=(RELU,))
        assert spec.gate_masks(torch.zeros(2, 4)) is None
        assert spec.layer_gate_masks(torch.zeros(2, 4)) == (None,)

    def test_gates_multiply(self) -> None:
        first, second = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
        inputs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]])
        one, two = [[1, 1, 0, 1], [0, 0, 1, 1]], [[1, 0, 1, 1], [1, 0, 1, 1]]
        product = [[1, 0, 0, 1], [0, 0, 1, 1]]
        together = BranchSpec(widths=(2, 2, 1), activations=(gated(first, second),)).layer_gate_masks(inputs)
        apart = BranchSpec(widths=(2, 2, 2, 2, 1), activations=(gated(first), RELU, gated(second)))
        layers = apart.layer_gate_masks(inputs)
        assert together[0] is not None
        assert together[0].tolist() == product
        assert layers[0] is not None
        assert layers[2] is not None
        assert (layers[0].tolist(), layers[1], layers[2].tolist()) == (one, None, two)
        masks = apart.gate_masks(inputs)
        assert masks is not None
        assert masks.dtype == torch.float64
        assert masks.tolist() == product
