"""ParallelNet behaves as nn.Sequential does: saving, converting, compiling, exporting, transforming."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.nn import GatedReLU, ParallelNet

from .._typed_torch import backward, jacobian
from ._networks import BRANCHES, make_net

trace: Any = torch.jit.trace
KINDS = ["two_layers", "three_layers_biases", "gated_deep"]
CHUNKS = [None, 2]  # chunks are recomputed in the backward pass


@pytest.fixture(params=[(kind, chunk) for kind in KINDS for chunk in CHUNKS], ids=lambda p: f"{p[0]}-{p[1]}")
def net(request: pytest.FixtureRequest) -> ParallelNet:
    kind, chunk_size = request.param
    return make_net(kind, 3, chunk_size=chunk_size, recompute=chunk_size is not None)


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(4, 3, dtype=torch.float64)


@pytest.mark.parametrize("num_branches", [1, 5])
@pytest.mark.parametrize("num_outputs", [1, 2])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_gradients_have_the_strides_of_their_parameters(
    num_branches: int, num_outputs: int, width: int, chunk_size: int | None
) -> None:
    """DistributedDataParallel warns if they differ, even along axes of length one."""
    layers = [nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), GatedReLU(2), nn.Linear(width, num_outputs)]
    net = ParallelNet(*layers, num_branches=num_branches, chunk_size=chunk_size, recompute=chunk_size is not None)
    for num_samples in (1, 7):
        net.zero_grad()
        backward(net(torch.randn(num_samples, 2)).square().sum())
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.stride() == parameter.stride(), name


class TestStateDict:
    def test_keys_are_those_of_the_sequential(self) -> None:
        for kind in BRANCHES:
            layers = BRANCHES[kind]()
            assert list(ParallelNet(*layers, num_branches=2).state_dict()) == list(nn.Sequential(*layers).state_dict())

    def test_round_trip(self, net: ParallelNet, inputs: Tensor) -> None:
        buffer = io.BytesIO()
        torch.save(net.state_dict(), buffer)
        buffer.seek(0)
        other = copy.deepcopy(net)
        other.reset_parameters()
        assert not torch.equal(other(inputs), net(inputs))
        other.load_state_dict(torch.load(buffer, weights_only=True))
        assert torch.equal(other(inputs), net(inputs))

    def test_other_number_of_branches_gives_the_usual_error(self) -> None:
        with pytest.raises(RuntimeError, match=r"size mismatch for 0.weight"):
            make_net("gated", 4).load_state_dict(make_net("gated", 3).state_dict())

    def test_missing_key_gives_the_usual_error(self) -> None:
        with pytest.raises(RuntimeError, match="Missing key"):
            make_net("gated", 3).load_state_dict(make_net("linear", 3).state_dict())


class TestCopies:
    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
    def test_copies_are_independent(self, net: ParallelNet, inputs: Tensor, duplicate: Any) -> None:
        other = duplicate(net)
        expected = net(inputs)
        assert torch.equal(other(inputs), expected)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.zero_()
        assert torch.equal(other(inputs), expected)

    def test_shallow_copy_shares(self, net: ParallelNet, inputs: Tensor) -> None:
        assert torch.equal(copy.copy(net)(inputs), net(inputs))

    def test_whole_module_can_be_saved(self, net: ParallelNet, inputs: Tensor) -> None:
        buffer = io.BytesIO()
        torch.save(net, buffer)
        buffer.seek(0)
        assert torch.equal(torch.load(buffer, weights_only=False)(inputs), net(inputs))


class TestConversions:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_to_dtype(self, net: ParallelNet, inputs: Tensor, dtype: torch.dtype) -> None:
        gates = [g.clone() for g in net.gate_vectors()]
        expected = net(inputs.to(dtype).to(torch.float64))
        outputs = net.to(dtype)(inputs.to(dtype))
        assert outputs.dtype == dtype
        assert all(p.dtype == dtype for p in net.parameters())
        assert all(torch.equal(new, old) for new, old in zip(net.gate_vectors(), gates, strict=True))
        torch.testing.assert_close(outputs.double(), expected, rtol=0.1, atol=0.1 if dtype == torch.bfloat16 else 1e-2)

    def test_named_conversions(self, net: ParallelNet) -> None:
        for convert, dtype in (
            ("half", torch.float16),
            ("float", torch.float32),
            ("bfloat16", torch.bfloat16),
            ("double", torch.float64),
        ):
            assert getattr(net, convert)() is net
            assert {p.dtype for p in net.parameters()} == {dtype}
            assert {g.dtype for g in net.gate_vectors()} <= {torch.float64}

    def test_requires_grad(self, net: ParallelNet, inputs: Tensor) -> None:
        net.requires_grad_(False)
        assert not net(inputs).requires_grad
        assert net.requires_grad_()(inputs).requires_grad

    def test_train_eval(self, net: ParallelNet, inputs: Tensor) -> None:
        expected = net(inputs)
        assert torch.equal(net.eval()(inputs), expected)
        assert all(not m.training for m in net.modules())
        assert all(not m.training for m in net.branch(0).modules())
        assert all(m.training for m in net.train().modules())

    def test_meta(self) -> None:
        with torch.device("meta"):
            net = ParallelNet(*BRANCHES["gated_deep"](), num_branches=3)
            assert net(torch.zeros(5, 3)).shape == (5, 2)
        assert all(t.is_meta for t in net.state_dict().values())
        net.to_empty(device="cpu")
        net.reset_parameters()
        assert net(torch.zeros(5, 3)).isfinite().all()
        assert {g.dtype for g in net.gate_vectors()} == {torch.float64}
        assert all(t.isfinite().all() and t.count_nonzero() for t in net.state_dict().values())

    def test_layers_on_meta_and_device_given(self) -> None:
        with torch.device("meta"):
            layers = BRANCHES["two_layers"]()
        net = ParallelNet(*layers, num_branches=2, device="cpu")
        assert all(t.isfinite().all() and t.abs().max() <= 1 for t in net.state_dict().values())


class TestAutocast:
    @pytest.mark.parametrize("kind", ["two_layers", "no_bias", "three_layers_biases", "gated_deep"])
    @pytest.mark.parametrize("num_branches", [1, 3])
    @pytest.mark.parametrize("chunk_size", [None, 2])
    def test_output_has_the_dtype_of_autocast(self, kind: str, num_branches: int, chunk_size: int | None) -> None:
        net = make_net(kind, num_branches, chunk_size=chunk_size, recompute=chunk_size is not None, dtype=torch.float32)
        inputs = torch.randn(8, 3)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = net(inputs)
            reference = net.branch(0)(inputs)
        assert outputs.dtype == reference.dtype == torch.bfloat16
        torch.testing.assert_close(outputs.float(), net(inputs), rtol=0.1, atol=0.1)
        outputs.float().sum().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())

    def test_gates_do_not_change(self) -> None:
        """A gate whose sign bfloat16 gets wrong: 1 + 2^-12 - 1 rounds to zero or to another sign."""
        gate = GatedReLU(2, gate_vector=torch.tensor([1.0, -(1.0 + 2.0**-12)]))
        net = ParallelNet(nn.Linear(2, 2), gate, nn.Linear(2, 1, bias=False), num_branches=1)
        inputs = torch.tensor([[1.0, 1.0]])  # the product is -2^-12: closed
        assert net(inputs).item() == 0.0
        with torch.autocast("cpu", torch.bfloat16):
            assert net(inputs).item() == 0.0
            assert net.branch(0)(inputs).item() == 0.0
        assert net.bfloat16()(inputs.bfloat16()).item() == 0.0


class TestTransforms:
    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    @pytest.mark.parametrize(("kind", "chunk_size"), [("two_layers", None), ("gated_deep", 2)])
    def test_compile_without_graph_break(self, kind: str, chunk_size: int | None, inputs: Tensor, backend: str) -> None:
        torch.compiler.reset()
        net = make_net(kind, 3, chunk_size=chunk_size, recompute=chunk_size is not None)
        compiled = torch.compile(net, backend=backend, fullgraph=True)
        torch.testing.assert_close(compiled(inputs), net(inputs))
        compiled(inputs).sum().backward()
        grads = [p.grad for p in net.parameters()]
        net.zero_grad()
        net(inputs).sum().backward()
        for grad, parameter in zip(grads, net.parameters(), strict=True):
            torch.testing.assert_close(grad, parameter.grad)

    def test_compiled_net_sees_added_branches(self) -> None:
        torch.compiler.reset()
        net, inputs = make_net("two_layers", 2), torch.randn(4, 3, dtype=torch.float64)
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        before = compiled(inputs)
        net.add_branches_([w[:1] for w in net.branch_weights()])
        torch.testing.assert_close(compiled(inputs), before + net.branch(0)(inputs))

    def test_export_with_dynamic_batch(self, net: ParallelNet, inputs: Tensor) -> None:
        batch = torch.export.Dim("batch", min=2, max=1024)
        program = torch.export.export(net, (inputs,), dynamic_shapes=({0: batch},))
        other = torch.randn(9, 3, dtype=torch.float64)
        torch.testing.assert_close(program.module()(other), net(other))

    @pytest.mark.filterwarnings("ignore:`torch.jit.trace.*` is deprecated", "ignore::torch.jit.TracerWarning")
    @pytest.mark.parametrize("pool", [nn.MaxPool1d(2), nn.AvgPool1d(2)])
    def test_trace(self, net: ParallelNet, inputs: Tensor, pool: nn.Module) -> None:
        convolutional = ParallelNet(
            nn.Conv1d(1, 2, 2), nn.ReLU(), pool, nn.Flatten(), nn.Linear(2, 2), num_branches=3, dtype=torch.float64
        )
        for model, example in ((net, inputs), (convolutional, inputs.unsqueeze(1))):
            assert inspect.getmembers(model)
            traced = trace(model, example)
            for rows in (example, example[:1], torch.cat([example, example])):
                torch.testing.assert_close(traced(rows), model(rows))

    def test_the_input_has_the_name_of_that_of_sequential(self, net: ParallelNet, inputs: Tensor) -> None:
        assert torch.equal(net(input=inputs), net(inputs))
        program = torch.export.export(net, (inputs,), dynamic_shapes={"input": {0: torch.export.Dim.AUTO}})
        torch.testing.assert_close(program.module()(inputs[:3]), net(inputs[:3]))

    @pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
    @pytest.mark.parametrize("convert", [Tensor.to_sparse, Tensor.to_sparse_csr])
    def test_sparse_inputs(self, net: ParallelNet, inputs: Tensor, convert: Any) -> None:
        if convert is Tensor.to_sparse_csr and net.gate_vectors():
            pytest.skip("torch has no such product for gates")
        inputs[inputs < 0] = 0.0
        outputs = net(convert(inputs))
        torch.testing.assert_close(outputs, net(inputs))
        gradients = torch.autograd.grad(outputs.square().sum(), list(net.parameters()))
        for gradient, expected in zip(
            gradients, torch.autograd.grad(net(inputs).square().sum(), list(net.parameters())), strict=True
        ):
            torch.testing.assert_close(gradient, expected)

    def test_functional_call(self, net: ParallelNet, inputs: Tensor) -> None:
        values = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
        assert torch.func.functional_call(net, values, (inputs,)).count_nonzero() == 0

    def test_vmap_over_inputs(self, net: ParallelNet, inputs: Tensor) -> None:
        torch.testing.assert_close(torch.func.vmap(net)(inputs), net(inputs))

    def test_vmap_over_an_ensemble(self, net: ParallelNet, inputs: Tensor) -> None:
        other = copy.deepcopy(net)
        other.reset_parameters()
        parameters, buffers = torch.func.stack_module_state([net, other])

        def call(params: dict[str, Tensor], bufs: dict[str, Tensor]) -> Tensor:
            result: Tensor = torch.func.functional_call(net, (params, bufs), (inputs,))
            return result

        outputs = torch.func.vmap(call)(parameters, buffers)
        torch.testing.assert_close(outputs, torch.stack([net(inputs), other(inputs)]))

    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # jacfwd itself loads scripted decompositions
    def test_jacrev_and_jacfwd(self, net: ParallelNet) -> None:
        point = torch.randn(3, dtype=torch.float64)
        expected = jacobian(net, point)
        torch.testing.assert_close(torch.func.jacrev(net)(point), expected)
        torch.testing.assert_close(torch.func.jacfwd(net)(point), expected)

    def test_per_sample_gradients(self, net: ParallelNet, inputs: Tensor) -> None:
        def loss(params: dict[str, Tensor], sample: Tensor) -> Tensor:
            result: Tensor = torch.func.functional_call(net, params, (sample,)).square().sum()
            return result

        parameters = {name: p.detach() for name, p in net.named_parameters()}
        grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, inputs)
        net(inputs).square().sum().backward()
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(grads[name].sum(0), parameter.grad)


def test_number_of_branches_from_numpy() -> None:
    assert ParallelNet(*BRANCHES["linear"](), num_branches=np.int64(3)).num_branches == 3  # type: ignore[arg-type]


class TestHooksAndText:
    def test_hooks_on_the_net(self, net: ParallelNet, inputs: Tensor) -> None:
        expected = net(inputs)
        net.register_forward_pre_hook(lambda module, args: (args[0] + 0,))
        net.register_forward_hook(lambda module, args, output: output + 1)
        torch.testing.assert_close(net(inputs), expected + 1)
        seen: list[Any] = []
        net.register_full_backward_hook(lambda module, grad_in, grad_out: seen.append(grad_out))
        net(inputs.requires_grad_()).sum().backward()
        assert len(seen) == 1

    def test_hooks_on_activations(self) -> None:
        net = make_net("two_layers", 3)
        shapes: list[torch.Size] = []
        net.get_submodule("1").register_forward_hook(lambda module, args, output: shapes.append(output.shape))
        net(torch.zeros(5, 3, dtype=torch.float64))
        assert shapes == [torch.Size((3, 4, 5))]

    def test_repr_shows_the_branch(self) -> None:
        text = repr(make_net("gated_deep", 5, chunk_size=2, recompute=True))
        assert text.startswith("ParallelNet(\n  num_branches=5, chunk_size=2, recompute=True\n")
        for part in ("in_features=3, out_features=4, bias=True", "GatedReLU", "ReLU()", "bias=shared"):
            assert part in text
        assert repr(ParallelNet(*BRANCHES["two_layers"](), num_branches=5)).startswith("ParallelNet(\n  num_branches=5\n")

    def test_parametrization_of_a_stacked_weight(self) -> None:
        class Zero(nn.Module):
            def forward(self, weight: Tensor) -> Tensor:
                return 0 * weight

        net = make_net("no_bias", 2)
        torch.nn.utils.parametrize.register_parametrization(net.get_submodule("0"), "weight", Zero())
        assert net(torch.ones(1, 3, dtype=torch.float64)).count_nonzero() == 0
