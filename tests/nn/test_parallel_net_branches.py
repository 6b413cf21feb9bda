"""Adding, removing and balancing branches; the penalty and its parameter groups."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from torch_strongdual.errors import InvalidInputError, ShapeError
from torch_strongdual.nn import GatedReLU, ParallelNet, ParallelWeights

from .._typed_torch import backward
from ._networks import BRANCHES, HOMOGENEOUS, looped_outputs, make_net


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(6, 3, dtype=torch.float64)


def snapshot(net: ParallelNet) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def assert_unchanged(net: ParallelNet, state: dict[str, Tensor]) -> None:
    now = net.state_dict()
    assert all(now[name].shape == value.shape and torch.equal(now[name], value) for name, value in state.items())


def scale_branch(net: ParallelNet, k: int, factors: list[float]) -> None:
    with torch.no_grad():
        for linear, factor in zip(
            [m for m in net.children() if isinstance(getattr(m, "weight", None), Tensor)], factors, strict=True
        ):
            linear.get_parameter("weight")[k] *= factor
    if "0.bias" in net.state_dict():
        with torch.no_grad():
            net.get_parameter("0.bias")[k] *= factors[0]


def layer_norms(net: ParallelNet) -> Tensor:
    return torch.stack([w.detach().double().flatten(1).norm(dim=1) for w in net.branch_weights()])


class TestAddBranches:
    @pytest.mark.parametrize("kind", BRANCHES)
    @pytest.mark.parametrize("num_added", [0, 1, 4])
    def test_outputs_add_up(self, kind: str, num_added: int, inputs: Tensor) -> None:
        net, other = make_net(kind, 3), make_net(kind, 4)
        with torch.no_grad():
            for bias in other.hidden_biases():  # those of new branches are zero
                if bias is not None:
                    bias.zero_()
        before = net(inputs)
        expected = before + sum((other.branch(k)(inputs) for k in range(num_added)), torch.zeros(()))
        net.add_branches_(
            [w[:num_added] for w in other.branch_weights()], gate_vectors=[g[:num_added] for g in other.gate_vectors()]
        )
        assert net.num_branches == 3 + num_added
        torch.testing.assert_close(net(inputs), expected)
        torch.testing.assert_close(net(inputs), looped_outputs(net, inputs))

    def test_parameters_stay_the_same_objects_and_train_on(self, inputs: Tensor) -> None:
        net = make_net("two_layers", 2)
        parameters = list(net.parameters())
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        net(inputs).sum().backward()
        net.add_branches_([w[:1] for w in net.branch_weights()])
        assert all(new is old for new, old in zip(net.parameters(), parameters, strict=True))
        assert net.get_parameter("0.weight").grad is None
        loss = net(inputs).square().sum()
        loss.backward()
        before = net.get_parameter("0.weight")[2].detach().clone()
        optimizer.step()
        assert not torch.equal(net.get_parameter("0.weight")[2], before)

    def test_converts_dtype(self) -> None:
        net = make_net("gated", 2, dtype=torch.bfloat16)
        net.add_branches_([w.double() for w in net.branch_weights()], gate_vectors=[g.float() for g in net.gate_vectors()])
        assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
        assert net.gate_vectors()[0].dtype == torch.float64
        assert net.gate_vectors()[0].shape == (4, 3)

    def test_does_not_keep_the_tensors_given(self) -> None:
        net = make_net("two_layers", 2)
        weights = [w[:1].detach().clone() for w in net.branch_weights()]
        net.add_branches_(weights)
        state = snapshot(net)
        for weight in weights:
            weight.zero_()
        assert_unchanged(net, state)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda w: w[:1], ShapeError, "`weights` has 1 tensors; expected 2"),
            (lambda w: [w[0][..., :-1], w[1]], ShapeError, r"weights\[0\].*expected \(1, 4, 4\).*bias as last column"),
            (lambda w: [w[0], w[1][:0]], ShapeError, r"weights\[1\].*expected \(1, 2, 4\)"),
            (lambda w: [w[0][0], w[1]], ShapeError, r"weights\[0\]"),
            (lambda w: [w[0], w[1] * math.nan], InvalidInputError, r"weights\[1\].*8 non-finite of 8"),
            (lambda w: [w[0], w[1].long()], InvalidInputError, "expected floating point"),
        ],
    )
    def test_refusals_leave_the_net_alone(self, change: Any, error: type[Exception], message: str) -> None:
        net = make_net("two_layers", 3)
        state = snapshot(net)
        with pytest.raises(error, match=message):
            net.add_branches_(change([w[:1].detach() for w in net.branch_weights()]))
        assert_unchanged(net, state)

    def test_gates_have_to_fit(self) -> None:
        net = make_net("gated", 3)
        state, weights = snapshot(net), [w[:2].detach() for w in net.branch_weights()]
        with pytest.raises(ShapeError, match="`gate_vectors` has 0 tensors; expected 1"):
            net.add_branches_(weights)
        with pytest.raises(ShapeError, match=r"gate_vectors\[0\].*expected \(2, 3\)"):
            net.add_branches_(weights, gate_vectors=[torch.zeros(1, 3)])
        with pytest.raises(ShapeError, match="`gate_vectors` has 1 tensors; expected 0"):
            make_net("two_layers", 3).add_branches_(weights, gate_vectors=[torch.zeros(2, 3)])
        assert_unchanged(net, state)


class TestPrune:
    @pytest.mark.parametrize("kind", HOMOGENEOUS)
    def test_zero_branches_go_and_outputs_stay(self, kind: str, inputs: Tensor) -> None:
        net = make_net(kind, 5)
        depth = net.branch_spec.num_layers
        scale_branch(net, 1, [0.0] + [1.0] * (depth - 1))
        scale_branch(net, 4, [1.0] * (depth - 1) + [0.0])
        before = net(inputs)
        kept = net.prune_()
        assert kept.tolist() == [0, 2, 3]
        assert net.num_branches == 3
        torch.testing.assert_close(net(inputs), before)

    def test_threshold_is_relative_to_the_largest_product(self) -> None:
        net = ParallelNet(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False), num_branches=4)
        with torch.no_grad():
            net.get_parameter("0.weight").copy_(torch.tensor([8.0, 4.0, 2.0, 1.0])[:, None, None])
            net.get_parameter("2.weight").fill_(-0.5)
        assert copy.deepcopy(net).prune_(0.24).tolist() == [0, 1, 2]
        assert copy.deepcopy(net).prune_(0.25).tolist() == [0, 1]  # "at most tol times the largest" goes
        assert copy.deepcopy(net).prune_(1.0).tolist() == [0]
        assert copy.deepcopy(net).prune_(7.0).tolist() == [0]

    def test_one_branch_is_kept(self, inputs: Tensor) -> None:
        net = make_net("gated", 3)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.zero_()
        assert net.prune_().numel() == 1
        assert net(inputs).shape == (6, 2)

    def test_one_branch_of_each_gate_is_kept_if_wanted(self) -> None:
        net = ParallelNet(nn.Linear(1, 1, bias=False), GatedReLU(1), nn.Linear(1, 1, bias=False), num_branches=5)
        net.gate_vectors()[0].copy_(torch.tensor([[1.0], [1.0], [-1.0], [-1.0], [2.0]]))
        with torch.no_grad():
            net.get_parameter("0.weight").copy_(torch.tensor([0.0, 1.0, 0.0, 0.0, 0.1])[:, None, None])
            net.get_parameter("2.weight").fill_(1.0)
        assert copy.deepcopy(net).prune_(keep_gates=True).tolist() == [1, 2, 4]
        assert copy.deepcopy(net).prune_(0.5, keep_gates=True).tolist() == [1, 2, 4]
        assert copy.deepcopy(net).prune_(0.5).tolist() == [1]
        plain = make_net("linear", 3)
        assert plain.prune_(keep_gates=True).tolist() == [0, 1, 2]

    def test_keeps_objects_and_dtype_of_indices(self) -> None:
        net = make_net("gated", 3)
        parameters = list(net.parameters())
        kept = net.prune_(0.0)
        assert kept.dtype == torch.int64
        assert all(new is old for new, old in zip(net.parameters(), parameters, strict=True))

    @pytest.mark.parametrize("tol", [-1e-9, math.nan, math.inf])
    def test_bad_tol(self, tol: float) -> None:
        with pytest.raises(InvalidInputError, match="`tol`"):
            make_net("linear").prune_(tol)

    def test_non_finite_weights(self) -> None:
        net = make_net("linear", 3)
        with torch.no_grad():
            net.get_parameter("0.weight")[1, 0, 0] = math.nan
        for operation in (net.prune_, net.balance_):
            with pytest.raises(InvalidInputError, match=r"weights of linear layer 0.*1 non-finite"):
                operation()
        assert net.num_branches == 3


class TestBalance:
    @pytest.mark.parametrize("kind", BRANCHES)
    def test_equal_norms_same_outputs(self, kind: str, inputs: Tensor) -> None:
        net = make_net(kind, 4)
        depth = net.branch_spec.num_layers
        for k in range(4):
            scale_branch(net, k, [10.0 ** ((k + layer) % 3 - 1) for layer in range(depth)])
        before, gates = net(inputs), [g.clone() for g in net.gate_vectors()]
        product = net.path_penalty("product")
        net.balance_()
        norms = layer_norms(net)
        torch.testing.assert_close(norms, norms[:1].expand_as(norms))
        torch.testing.assert_close(net(inputs), before)
        torch.testing.assert_close(net.path_penalty("product"), product)
        torch.testing.assert_close(net.path_penalty("power"), product)  # equal exactly when balanced
        assert all(torch.equal(new, old) for new, old in zip(net.gate_vectors(), gates, strict=True))

    @given(exponents=st.lists(st.integers(-30, 30), min_size=3, max_size=3))
    def test_wild_scales(self, exponents: list[int]) -> None:
        net = make_net("three_layers", 2, dtype=torch.float32)
        scale_branch(net, 1, [2.0**e for e in exponents])
        points = torch.randn(4, 3)
        before = ParallelWeights.from_module(net).outputs(points)
        net.balance_()
        norms = layer_norms(net)
        torch.testing.assert_close(norms, norms[:1].expand_as(norms), rtol=1e-5, atol=0.0)
        after = ParallelWeights.from_module(net).outputs(points)
        scale = ParallelWeights.from_module(net).output_error(points) / 2.0**-52  # outputs may cancel
        assert ((after - before).abs() <= scale * 2.0**-22).all()

    def test_zero_branches_stay_as_they_are(self, inputs: Tensor) -> None:
        net = make_net("three_layers_biases", 3)
        scale_branch(net, 1, [1.0, 1.0, 0.0])
        first, bias, before = net.branch_weights()[0][1].clone(), net.hidden_biases()[1], net(inputs)
        assert bias is not None
        bias_before = bias[1].clone()
        net.balance_()
        assert torch.equal(net.branch_weights()[0][1], first)
        assert torch.equal(bias[1], bias_before)
        assert net.branch_weights()[2][1].count_nonzero() == 0
        torch.testing.assert_close(net(inputs), before)


class TestPathPenalty:
    @pytest.mark.parametrize("kind", ["two_layers", "no_bias", "three_layers_biases", "gated"])
    def test_is_the_sum_of_closed_forms(self, kind: str) -> None:
        net = make_net(kind, 3)
        depth = net.branch_spec.num_layers
        product = power = l2_path = 0.0
        for k in range(3):
            weights = [w[k].detach() for w in net.branch_weights()]
            norms = [w.square().sum().sqrt().item() for w in weights]
            product += math.prod(norms)
            power += sum(norm**depth for norm in norms) / depth
            paths = torch.ones(weights[0].shape[1], dtype=torch.float64)
            for weight in weights:
                paths = weight.square() @ paths
            l2_path += paths.sum().sqrt().item()
        for name, expected in (("product", product), ("power", power), ("l2_path", l2_path)):
            penalty = net.path_penalty(name)
            assert penalty.shape == ()
            assert penalty.item() == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("kind", ["product", "power", "l2_path"])
    def test_gradients(self, kind: str) -> None:
        net = make_net("two_layers", 2)
        names, values = zip(*net.named_parameters(), strict=True)

        class Penalty(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = net

            def forward(self) -> Tensor:
                return self.net.path_penalty(kind)

        def function(*tensors: Tensor) -> Tensor:
            named = {f"net.{name}": tensor for name, tensor in zip(names, tensors, strict=True)}
            result: Tensor = torch.func.functional_call(Penalty(), named, ())
            return result

        assert torch.autograd.gradcheck(function, values)
        backward(net.path_penalty(kind))
        assert net.get_parameter("0.bias").grad is not None  # part of the first weight
        assert net.get_parameter("2.bias").grad is None  # not penalised

    def test_unknown_kind(self) -> None:
        with pytest.raises(InvalidInputError, match="expected one of 'product', 'power', 'l2_path'"):
            make_net("linear").path_penalty("l1")


class TestParamGroups:
    def test_groups(self) -> None:
        net = make_net("three_layers_biases")
        get = net.get_parameter
        first, second = net.path_param_groups(path_decay=0.3, penalty="l2_path")
        expected = [get("0.weight"), get("0.bias"), get("2.weight"), get("4.weight")]
        assert all(a is b for a, b in zip(first["params"], expected, strict=True))
        assert first["layer_index"] == (0, 0, 1, 2)
        assert (first["path_decay"], first["penalty"]) == (0.3, "l2_path")
        assert all(a is b for a, b in zip(second["params"], [get("2.bias"), get("4.bias")], strict=True))
        assert second["path_decay"] == 0.0

    def test_without_free_biases_there_is_one_group(self) -> None:
        (group,) = make_net("no_bias").path_param_groups(path_decay=1e-3)
        assert (group["layer_index"], group["penalty"]) == ((0, 1), "product")

    @pytest.mark.parametrize("kind", BRANCHES)
    def test_every_parameter_is_in_one_group(self, kind: str) -> None:
        net = make_net(kind)
        ids = [id(p) for group in net.path_param_groups(path_decay=1.0) for p in group["params"]]
        assert sorted(ids) == sorted(id(p) for p in net.parameters())

    def test_torch_optimizers_take_them(self) -> None:
        torch.optim.SGD(make_net("two_layers").path_param_groups(path_decay=0.1), lr=0.1)

    @pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
    def test_bad_path_decay(self, value: float) -> None:
        with pytest.raises(InvalidInputError, match="`path_decay`"):
            make_net("linear").path_param_groups(path_decay=value)

    def test_bad_penalty(self) -> None:
        with pytest.raises(InvalidInputError, match="`penalty` is 'l1'"):
            make_net("linear").path_param_groups(path_decay=0.1, penalty="l1")
