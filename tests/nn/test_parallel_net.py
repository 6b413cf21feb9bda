"""Values, gradients, initialisation and parts of ParallelNet."""

from __future__ import annotations

import math
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.errors import InvalidInputError
from torch_strongdual.nn import BranchSequential, GatedReLU, ParallelNet

from .._typed_torch import backward, num_distinct
from ._networks import BRANCHES, looped_outputs, make_net, num_outputs

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype = torch.float64) -> None:
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


class TestOutputs:
    @pytest.mark.parametrize("kind", BRANCHES)
    @pytest.mark.parametrize("num_branches", [1, 2, 5])
    @pytest.mark.parametrize("chunk_size", [None, 1, 2, 5, 9])
    def test_is_the_sum_of_its_branches(self, kind: str, num_branches: int, chunk_size: int | None) -> None:
        net = make_net(kind, num_branches, chunk_size=chunk_size)
        inputs = torch.randn(7, 3, dtype=torch.float64)
        close(net(inputs), looped_outputs(net, inputs))

    @pytest.mark.parametrize("kind", BRANCHES)
    @pytest.mark.parametrize("chunk_size", [None, 1, 2])
    def test_gradients_are_those_of_the_branches(self, kind: str, chunk_size: int | None) -> None:
        net = make_net(kind, 3, chunk_size=chunk_size)
        inputs = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
        seed = torch.randn(6, num_outputs(net), dtype=torch.float64)
        net(inputs).backward(seed)
        assert inputs.grad is not None
        expected_input_grad = torch.zeros_like(inputs)
        for k in range(3):
            branch, branch_inputs = net.branch(k), inputs.detach().clone().requires_grad_()
            branch(branch_inputs).backward(seed)
            assert branch_inputs.grad is not None
            expected_input_grad += branch_inputs.grad
            for name, parameter in branch.named_parameters():
                stacked = net.get_parameter(name).grad
                assert stacked is not None
                assert parameter.grad is not None
                close(stacked[k], parameter.grad)
        close(inputs.grad, expected_input_grad)
        if net.output_bias is not None:
            assert net.output_bias.grad is not None
            close(net.output_bias.grad, seed.sum(0))

    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("kind", ["two_layers", "three_layers_biases", "gated"])
    def test_dtypes(self, kind: str, dtype: torch.dtype) -> None:
        net = make_net(kind, 4, dtype=dtype)
        inputs = torch.randn(5, 3).to(dtype)
        outputs = net(inputs)
        assert outputs.dtype == dtype
        outputs.float().sum().backward()
        assert all(p.grad is not None and p.grad.dtype == dtype for p in net.parameters())
        close(outputs, looped_outputs(net, inputs).to(dtype), dtype)

    @pytest.mark.parametrize("kind", ["two_layers", "three_layers_biases", "five_layers", "leaky", "linear", "inplace"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_one_branch_is_the_sequential_bit_for_bit(self, kind: str, dtype: torch.dtype) -> None:
        torch.manual_seed(7)
        sequential = nn.Sequential(*BRANCHES[kind]()).to(dtype)
        torch.manual_seed(7)
        net = ParallelNet(*BRANCHES[kind](), num_branches=1).to(dtype)
        inputs, targets = torch.randn(16, 3, dtype=dtype), torch.randn(16, num_outputs(net), dtype=dtype)
        optimizers = [torch.optim.Adam(module.parameters(), lr=1e-2) for module in (sequential, net)]
        for _ in range(5):
            for module, optimizer in zip((sequential, net), optimizers, strict=True):
                optimizer.zero_grad()
                backward(nn.functional.mse_loss(module(inputs), targets))
                optimizer.step()
        assert torch.equal(net(inputs), sequential(inputs))

    @pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 5, 3), (2, 0, 3), (2, 2, 2, 3), (0, 3)])
    @pytest.mark.parametrize("kind", ["two_layers", "three_layers_biases", "gated"])
    @pytest.mark.parametrize("chunk_size", [None, 2])
    def test_leading_dimensions(self, kind: str, shape: tuple[int, ...], chunk_size: int | None) -> None:
        net = make_net(kind, 3, chunk_size=chunk_size)
        inputs = torch.randn(shape, dtype=torch.float64)
        outputs = net(inputs)
        assert outputs.shape == (*shape[:-1], 2)
        close(outputs, looped_outputs(net, inputs))
        outputs.sum().backward()

    @pytest.mark.parametrize("shape", [(4, 2, 3), (0, 2, 3), (4, 6), (4, 1, 3, 2)])
    @pytest.mark.parametrize("gated", [False, True])
    def test_flatten(self, shape: tuple[int, ...], gated: bool) -> None:
        activation = GatedReLU(6) if gated else nn.ReLU()
        net = ParallelNet(nn.Flatten(), nn.Linear(6, 4), activation, nn.Linear(4, 2), num_branches=3, dtype=torch.float64)
        inputs = torch.randn(shape, dtype=torch.float64)
        assert net(inputs).shape == (shape[0], 2)
        close(net(inputs), looped_outputs(net, inputs))

    def test_outputs_are_contiguous(self) -> None:
        assert make_net("three_layers")(torch.randn(4, 3, dtype=torch.float64)).is_contiguous()

    def test_non_contiguous_inputs(self) -> None:
        net, inputs = make_net("two_layers"), torch.randn(3, 8, dtype=torch.float64).T
        close(net(inputs), looped_outputs(net, inputs))

    def test_nan_inputs_come_out_as_nan(self) -> None:
        inputs = torch.tensor([[math.nan, 1.0, 1.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
        for kind in ("two_layers", "gated", "three_layers"):
            outputs = make_net(kind)(inputs)
            assert outputs[0].isnan().all()
            assert outputs[1].isfinite().all()

    @pytest.mark.parametrize(
        ("kind", "chunk_size", "recompute"), [("two_layers", None, False), ("two_layers", 1, True), ("gated_deep", 1, False)]
    )
    def test_gradcheck(self, kind: str, chunk_size: int | None, recompute: bool) -> None:
        net = make_net(kind, 2, chunk_size=chunk_size, recompute=recompute)
        names, parameters = zip(*net.named_parameters(), strict=True)

        def function(inputs: Tensor, *values: Tensor) -> Tensor:
            result: Tensor = torch.func.functional_call(net, dict(zip(names, values, strict=True)), (inputs,))
            return result

        arguments = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True), *parameters)
        assert torch.autograd.gradcheck(function, arguments)
        assert torch.autograd.gradgradcheck(function, arguments)


class TestRecomputation:
    def test_backward_after_functional_call_uses_the_parameters_of_the_call(self) -> None:
        net = make_net("three_layers", 4, chunk_size=2, recompute=True)
        inputs = torch.randn(5, 3, dtype=torch.float64)
        values = {name: (2 * p.detach()).requires_grad_() for name, p in net.named_parameters()}
        torch.func.functional_call(net, values, (inputs,)).sum().backward()
        doubled = make_net("three_layers", 4)
        doubled.load_state_dict({name: value.detach() for name, value in values.items()})
        doubled(inputs).sum().backward()
        for name, parameter in doubled.named_parameters():
            assert parameter.grad is not None
            grad = values[name].grad
            assert grad is not None
            close(grad, parameter.grad)


class TestInitialisation:
    def test_branches_are_independent_draws_of_the_distribution_of_linear(self) -> None:
        net = ParallelNet(nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 2), num_branches=400)
        for name, fan_in in (("0.weight", 9), ("0.bias", 9), ("2.weight", 20), ("2.bias", 20), ("4.weight", 10)):
            values, bound = net.get_parameter(name).detach().flatten().double(), 1 / math.sqrt(fan_in)
            # Kolmogorov-Smirnov distance to the uniform law on [-bound, bound]; 4 / sqrt(n) is exceeded once in 10^13.
            uniform = (values.sort().values / bound + 1) / 2
            distance = (uniform - (torch.arange(len(values)) + 0.5) / len(values)).abs().max().item()
            assert distance < 4 / math.sqrt(len(values))
            assert values.abs().max() <= bound
            assert num_distinct(values) > 0.99 * len(values)

    def test_branch_zero_is_what_was_given(self) -> None:
        layers = BRANCHES["three_layers_biases"]()
        net = ParallelNet(*layers, num_branches=3)
        for name, parameter in nn.Sequential(*layers).named_parameters():
            stacked = net.get_parameter(name)
            assert torch.equal(stacked if name == "4.bias" else stacked[0], parameter)

    def test_does_not_share_memory_with_the_layers_given(self) -> None:
        layers = BRANCHES["gated"]()
        net = ParallelNet(*layers, num_branches=1)
        before = net(torch.ones(1, 3))
        with torch.no_grad():
            for layer in layers:
                for tensor in (*layer.parameters(), *layer.buffers()):
                    tensor.zero_()
        assert torch.equal(net(torch.ones(1, 3)), before)

    def test_one_branch_draws_no_random_numbers(self) -> None:
        layers = BRANCHES["gated"]()
        state = torch.get_rng_state()
        ParallelNet(*layers, num_branches=1).branch(0)
        assert torch.equal(torch.get_rng_state(), state)

    def test_gates_are_independent_standard_normal(self) -> None:
        net = ParallelNet(nn.Linear(10, 2), GatedReLU(10), nn.Linear(2, 1), num_branches=1000)
        gates = net.gate_vectors()[0]
        assert gates.shape == (1000, 10)
        assert abs(gates.mean().item()) < 5 / math.sqrt(10_000)
        assert abs(gates.var().item() - 1) < 5 * math.sqrt(2 / 10_000)

    def test_frozen_layers_stay_frozen(self) -> None:
        layers = BRANCHES["two_layers"]()
        layers[0].requires_grad_(False)
        net = ParallelNet(*layers, num_branches=2)
        assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]
        assert [p.requires_grad for p in net.branch(0).parameters()] == [False, False, True]

    def test_dtype_and_device_arguments(self) -> None:
        net = ParallelNet(*BRANCHES["gated"](), num_branches=2, dtype=torch.bfloat16, device="meta")
        assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
        assert {t.device.type for t in net.state_dict().values()} == {"meta"}
        assert net.gate_vectors()[0].dtype == torch.float64

    def test_ordered_dict(self) -> None:
        layers = OrderedDict(hidden=nn.Linear(3, 4), act=nn.ReLU(), out=nn.Linear(4, 1))
        net = ParallelNet(layers, num_branches=2)
        assert list(net.state_dict()) == ["hidden.weight", "hidden.bias", "out.weight", "out.bias"]
        assert list(net.branch(0).state_dict()) == ["hidden.weight", "hidden.bias", "out.weight"]

    def test_from_sequential(self) -> None:
        sequential = nn.Sequential(OrderedDict(a=nn.Linear(3, 4), b=nn.ReLU(), c=nn.Linear(4, 1))).eval()
        state = {name: value.clone() for name, value in sequential.state_dict().items()}
        net = ParallelNet.from_sequential(sequential, num_branches=3, chunk_size=2, recompute=True)
        assert isinstance(net, ParallelNet)
        assert not net.training
        assert net.chunk_size == 2
        assert net.recompute
        inputs = torch.randn(4, 3)
        torch.testing.assert_close(net.branch(0)(inputs) + net.output_bias, sequential(inputs))
        assert not torch.equal(net.branch(1).get_parameter("a.weight"), net.branch(0).get_parameter("a.weight"))
        with torch.no_grad():
            net.get_parameter("a.weight").zero_()
        assert all(torch.equal(sequential.state_dict()[name], value) for name, value in state.items())

    def test_from_sequential_with_one_relu_used_twice(self) -> None:
        relu = nn.ReLU()
        sequential = nn.Sequential(nn.Linear(3, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 1))
        net = ParallelNet.from_sequential(sequential, num_branches=1)
        inputs = torch.randn(9, 3)
        assert torch.equal(net(inputs), sequential(inputs))
        assert torch.equal(net.branch(0)(inputs), sequential(inputs))

    def test_from_sequential_of_a_subclass_keeps_the_class(self) -> None:
        class Net(ParallelNet):
            pass

        assert type(Net.from_sequential(nn.Sequential(*BRANCHES["linear"]()), num_branches=2)) is Net


class TestParts:
    def test_branch_has_the_output_bias_only_if_it_is_alone(self) -> None:
        assert "2.bias" in make_net("two_layers", 1).branch(0).state_dict()
        assert "2.bias" not in make_net("two_layers", 2).branch(0).state_dict()

    def test_branch_is_a_copy(self) -> None:
        net = make_net("gated", 2)
        branch, before = net.branch(1), net(torch.ones(1, 3, dtype=torch.float64))
        with torch.no_grad():
            for tensor in (*branch.parameters(), *branch.buffers()):
                tensor.zero_()
        assert torch.equal(net(torch.ones(1, 3, dtype=torch.float64)), before)

    def test_kind_of_branch(self) -> None:
        assert type(make_net("two_layers").branch(0)) is nn.Sequential
        assert type(make_net("gated").branch(0)) is BranchSequential

    def test_negative_index(self) -> None:
        net = make_net("two_layers", 3)
        assert torch.equal(net.branch(-1).get_parameter("0.weight"), net.branch(2).get_parameter("0.weight"))

    @pytest.mark.parametrize("index", [3, -4])
    def test_index_out_of_range(self, index: int) -> None:
        with pytest.raises(InvalidInputError, match=f"`index` is {index}; expected -3 to 2"):
            make_net("two_layers", 3).branch(index)

    def test_branch_weights_and_biases(self) -> None:
        net = make_net("three_layers_biases", 4)
        weights = net.branch_weights()
        assert [tuple(w.shape) for w in weights] == [(4, 5, 4), (4, 4, 5), (4, 2, 4)]
        assert torch.equal(weights[0][..., :-1], net.get_parameter("0.weight"))
        assert torch.equal(weights[0][..., -1], net.get_parameter("0.bias"))
        biases = net.hidden_biases()
        assert biases[0] is None
        assert biases[1] is net.get_parameter("2.bias")
        assert len(biases) == 2
        assert net.output_bias is net.get_parameter("4.bias")
        backward(weights[0].sum())
        assert net.get_parameter("0.bias").grad is not None

    def test_without_biases(self) -> None:
        net = make_net("no_bias", 2)
        assert net.output_bias is None
        assert net.hidden_biases() == [None]
        assert net.branch_weights()[0] is net.get_parameter("0.weight")
