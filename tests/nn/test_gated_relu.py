from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from torch_strongdual.errors import InvalidInputError, ShapeError, UnsupportedModelError
from torch_strongdual.nn import BranchSequential, GatedReLU, ParallelNet

from .._typed_torch import num_distinct

GATE = torch.tensor([1.0, -2.0, 0.5])


class TestValues:
    def test_open_where_the_product_is_not_negative(self) -> None:
        inputs = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, -0.1], [2.0, 1.0, 0.1], [0.0, 0.0, 0.0]])  # products 0, -.05, .05, 0
        hidden = torch.tensor([[-1.0, 2.0]] * 4)
        outputs = GatedReLU(3, gate_vector=GATE)(hidden, inputs)
        assert outputs.tolist() == [[-1.0, 2.0], [0.0, 0.0], [-1.0, 2.0], [-1.0, 2.0]]

    @pytest.mark.parametrize("leading", [(), (4,), (2, 5), (0,)])
    def test_leading_dimensions(self, leading: tuple[int, ...]) -> None:
        hidden, inputs = torch.randn(*leading, 2), torch.randn(*leading, 3)
        outputs = GatedReLU(3, gate_vector=GATE)(hidden, inputs)
        expected = torch.where((inputs.double() @ GATE.double() >= 0)[..., None], hidden, 0.0)
        assert torch.equal(outputs, expected)

    def test_gradient_passes_open_gates_only(self) -> None:
        hidden = torch.ones(2, 1, requires_grad=True)
        inputs = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], requires_grad=True)
        GatedReLU(3, gate_vector=GATE)(hidden, inputs).sum().backward()
        assert hidden.grad is not None
        assert hidden.grad.tolist() == [[1.0], [0.0]]
        assert inputs.grad is None

    def test_keeps_the_dtype_of_hidden(self) -> None:
        gate = GatedReLU(3)
        assert gate(torch.ones(1, 2, dtype=torch.bfloat16), torch.ones(1, 3)).dtype == torch.bfloat16

    def test_sign_is_evaluated_in_float64(self) -> None:
        """In float32 the product of these float32 numbers is zero: open. Exactly it is negative: closed."""
        inputs, vector = torch.tensor([[1.0 + 2.0**-23, 1.0]]), torch.tensor([1.0 - 2.0**-23, -1.0])
        assert (inputs @ vector).item() >= 0
        gate = GatedReLU(2, gate_vector=vector)
        assert gate(torch.ones(1, 1), inputs).item() == 0.0
        with torch.autocast("cpu", torch.bfloat16):
            assert gate(torch.ones(1, 1), inputs).item() == 0.0

    def test_nan_stays_nan_though_the_gate_is_closed(self) -> None:
        gate = GatedReLU(3)
        inputs = torch.full((1, 3), math.nan)
        assert gate(inputs.clone(), inputs).isnan().all()


class TestGate:
    def test_drawn_from_the_standard_normal(self) -> None:
        values = GatedReLU(20_000).gate_vector
        assert values.dtype == torch.float64
        assert abs(values.mean().item()) < 5 / math.sqrt(20_000)
        assert abs(values.var().item() - 1) < 5 * math.sqrt(2 / 20_000)

    def test_is_a_copy_and_not_trained(self) -> None:
        vector = GATE.double().requires_grad_()
        gate = GatedReLU(3, gate_vector=vector)
        with torch.no_grad():
            vector.zero_()
        assert torch.equal(gate.gate_vector, GATE.double())
        assert not list(gate.parameters())
        assert list(gate.state_dict()) == ["gate_vector"]

    @pytest.mark.parametrize(
        "convert",
        [
            nn.Module.half,
            nn.Module.float,
            nn.Module.double,
            nn.Module.bfloat16,
            lambda m: m.to(torch.float16),
            lambda m: m.to("cpu", torch.float32),
            lambda m: m.type(torch.float16),
            copy.deepcopy,
            lambda m: pickle.loads(pickle.dumps(m)),
        ],
    )
    @pytest.mark.parametrize("wrapped", [False, True])
    def test_survives_conversions_bit_for_bit(self, convert: Any, wrapped: bool) -> None:
        gate = GatedReLU(5)
        vector = gate.gate_vector.clone()
        module = BranchSequential(nn.Linear(5, 2), gate, nn.Linear(2, 1)) if wrapped else gate
        converted = convert(module)
        result = converted[1] if wrapped else converted
        assert result.gate_vector.dtype == torch.float64
        assert torch.equal(result.gate_vector, vector)
        assert "gate_vector" in result._buffers

    def test_moves_between_devices(self) -> None:
        assert GatedReLU(3).to("meta").gate_vector.is_meta
        moved = GatedReLU(3).to("meta", torch.float16).gate_vector
        assert moved.is_meta
        assert moved.dtype == torch.float64

    def test_state_dict_round_trip(self) -> None:
        gate, other = GatedReLU(3), GatedReLU(3)
        buffer = io.BytesIO()
        torch.save(gate.state_dict(), buffer)
        buffer.seek(0)
        other.load_state_dict(torch.load(buffer, weights_only=True))
        assert torch.equal(other.gate_vector, gate.gate_vector)
        with pytest.raises(RuntimeError, match="size mismatch for gate_vector"):
            GatedReLU(4).load_state_dict(gate.state_dict())

    def test_repr(self) -> None:
        assert repr(GatedReLU(3)) == "GatedReLU(in_features=3)"

    def test_dtype_argument_has_no_effect(self) -> None:
        assert GatedReLU(3, dtype=torch.float16).gate_vector.dtype == torch.float64

    def test_meta_construction(self) -> None:
        assert GatedReLU(3, device="meta").gate_vector.is_meta
        assert GatedReLU(3, gate_vector=GATE, device="meta").gate_vector.is_meta


class TestRefusals:
    def test_in_a_plain_sequential(self) -> None:
        net = nn.Sequential(nn.Linear(3, 4), GatedReLU(3), nn.Linear(4, 1))
        with pytest.raises(UnsupportedModelError, match="Put the layers into ParallelNet or BranchSequential"):
            net(torch.zeros(2, 3))

    @pytest.mark.parametrize("value", [0, -1, 2.0, True, "3"])
    def test_in_features(self, value: Any) -> None:
        with pytest.raises(InvalidInputError, match="`in_features`"):
            GatedReLU(value)

    @pytest.mark.parametrize(
        ("vector", "error", "message"),
        [
            (torch.zeros(4), ShapeError, r"`gate_vector` has shape \(4,\); expected \(3\)"),
            (torch.zeros(1, 3), ShapeError, "gate_vector"),
            (torch.tensor([1.0, math.nan, 0.0]), InvalidInputError, "1 non-finite of 3"),
            (torch.zeros(3, dtype=torch.int64), InvalidInputError, "expected floating point"),
            (torch.zeros(3, dtype=torch.complex64), InvalidInputError, "expected floating point"),
        ],
    )
    def test_gate_vector(self, vector: torch.Tensor, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            GatedReLU(3, gate_vector=vector)

    def test_dtype(self) -> None:
        with pytest.raises(InvalidInputError, match=r"`dtype` is torch.complex64"):
            GatedReLU(3, dtype=torch.complex64)

    def test_shapes_in_forward(self) -> None:
        gate = GatedReLU(3)
        with pytest.raises(ShapeError, match=r"`branch_input` has shape \(2, 4\); expected \(\.\.\., 3\)"):
            gate(torch.zeros(2, 5), torch.zeros(2, 4))
        with pytest.raises(ShapeError, match="expected the same dimensions up to the last one"):
            gate(torch.zeros(2, 5), torch.zeros(3, 3))


class TestBranchSequential:
    def test_hands_over_the_input_behind_flatten(self) -> None:
        gate = GatedReLU(6)
        first, last = nn.Linear(6, 4), nn.Linear(4, 2)
        net = BranchSequential(nn.Flatten(), nn.Identity(), first, nn.LeakyReLU(0.1), gate, last)
        inputs = torch.randn(5, 2, 3)
        flat = inputs.flatten(1)
        opened = (flat.double() @ gate.gate_vector >= 0)[:, None]
        expected = last(torch.where(opened, nn.functional.leaky_relu(first(flat), 0.1), 0.0))
        torch.testing.assert_close(net(inputs), expected)

    def test_without_gates_it_is_nn_sequential(self) -> None:
        layers = [nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)]
        inputs = torch.randn(5, 3)
        assert torch.equal(BranchSequential(*layers)(inputs), nn.Sequential(*layers)(inputs))

    def test_gate_before_any_linear_layer(self) -> None:
        with pytest.raises(UnsupportedModelError, match="without the branch input"):
            BranchSequential(GatedReLU(3), nn.Linear(3, 1))(torch.zeros(1, 3))

    def test_compiles_and_exports(self) -> None:
        net = BranchSequential(nn.Linear(3, 4), GatedReLU(3), nn.Linear(4, 1))
        inputs = torch.randn(5, 3)
        torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(inputs), net(inputs))
        torch.testing.assert_close(torch.export.export(net, (inputs,)).module()(inputs), net(inputs))


def test_each_branch_of_a_parallel_net_has_its_own_gate() -> None:
    given = GatedReLU(3)
    net = ParallelNet(nn.Linear(3, 4), given, nn.Linear(4, 1), num_branches=3)
    gates = net.gate_vectors()[0]
    assert torch.equal(gates[0], given.gate_vector)
    assert num_distinct(gates) == 3
    for k in range(3):
        assert torch.equal(net.branch(k).get_buffer("1.gate_vector"), gates[k])
