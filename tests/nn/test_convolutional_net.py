"""ParallelNet with convolutional branches: values, gradients, drop-in behaviour, refusals."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.errors import InvalidInputError, ShapeError, UnsupportedModelError
from torch_strongdual.functional.averaged_convolution import averaged_outputs
from torch_strongdual.nn import GatedReLU, ParallelNet, _convolutional_forward
from torch_strongdual.optim import PathAdamW, PathSGD

from .._typed_torch import backward

BRANCHES: dict[str, Callable[[], list[nn.Module]]] = {
    "global_pool": lambda: [
        nn.Conv2d(2, 3, 3, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 2, bias=False),
    ],
    "global_pool_biases": lambda: [
        nn.Identity(),
        nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=1, dilation=(2, 1)),
        nn.LeakyReLU(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 1),
    ],
    "linear_local": lambda: [nn.Conv2d(2, 3, 2), nn.AvgPool2d(2, padding=1), nn.Flatten(), nn.Linear(27, 2)],
    "max_pool": lambda: [nn.Conv2d(2, 1, 2), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 1)],
    "same": lambda: [nn.Conv2d(2, 2, 3, padding="same"), nn.AdaptiveMaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)],
    "deep": lambda: [
        nn.Conv2d(2, 3, 2),
        nn.ReLU(),
        nn.MaxPool2d(2, stride=1),
        nn.Conv2d(3, 2, 2, padding=1),
        nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d((2, 1)),
        nn.Flatten(),
        nn.Linear(4, 3),
        nn.ReLU(),
        nn.Linear(3, 2),
        nn.Identity(),
    ],
}
SIGNALS: dict[str, Callable[[], list[nn.Module]]] = {
    "global_pool": lambda: [nn.Conv1d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 2)],
    "pools": lambda: [
        nn.Conv1d(2, 2, 2, bias=False),
        nn.AvgPool1d(2),
        nn.Conv1d(2, 4, 2, stride=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Flatten(),
        nn.Linear(4, 1),
    ],
    "adaptive_max": lambda: [nn.Conv1d(2, 2, 2), nn.AdaptiveMaxPool1d(1), nn.ReLU(), nn.Flatten(), nn.Linear(2, 1)],
}
CASES = [(layers, (4, 2, 6, 5)) for layers in BRANCHES.values()] + [(layers, (4, 2, 9)) for layers in SIGNALS.values()]
IDS = [*BRANCHES, *[f"signal_{name}" for name in SIGNALS]]
PARAMETRIZED = pytest.mark.parametrize(("layers", "shape"), CASES, ids=IDS)
Layers = Callable[[], list[nn.Module]]


def make_net(layers: Layers, num_branches: int, chunk_size: int | None = None) -> ParallelNet:
    recompute = chunk_size is not None
    return ParallelNet(*layers(), num_branches=num_branches, chunk_size=chunk_size, recompute=recompute, dtype=torch.float64)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def single_nets(net: ParallelNet, layers: Layers) -> list[nn.Sequential]:
    """Every branch as torch builds it, its weights copied from the stacked parameters; the output bias is left to the first."""
    branches = []
    for k in range(net.num_branches):
        single = nn.Sequential(*layers()).to(torch.float64)
        with torch.no_grad():
            for name, parameter in single.named_parameters():
                stacked = net.get_parameter(name)
                shared = stacked.shape == parameter.shape
                parameter.copy_(stacked * (k == 0) if shared else stacked[k])
        branches.append(single)
    return branches


class TestOutputs:
    @PARAMETRIZED
    @pytest.mark.parametrize("num_branches", [2, 5])
    @pytest.mark.parametrize("chunk_size", [None, 2])
    def test_values_and_gradients_are_those_of_the_branches(
        self, layers: Layers, shape: tuple[int, ...], num_branches: int, chunk_size: int | None
    ) -> None:
        net = make_net(layers, num_branches, chunk_size)
        inputs = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        outputs = net(inputs)
        seed = torch.randn_like(outputs)
        outputs.backward(seed)
        branches, copies = single_nets(net, layers), inputs.detach().clone().requires_grad_()
        expected = sum((branch(copies) for branch in branches), torch.zeros(()))
        expected.backward(seed)
        close(outputs, expected)
        assert inputs.grad is not None
        assert copies.grad is not None
        close(inputs.grad, copies.grad)
        for name, parameter in net.named_parameters():
            own = [branch.get_parameter(name).grad for branch in branches]
            gradients = torch.stack([gradient for gradient in own if gradient is not None])
            assert parameter.grad is not None
            close(parameter.grad, gradients[0] if parameter.ndim == 1 else gradients)
            assert parameter.grad.stride() == parameter.stride(), name

    @PARAMETRIZED
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_one_branch_is_the_sequential_bit_for_bit(self, layers: Layers, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        sequential = nn.Sequential(*layers()).to(dtype)
        net = ParallelNet.from_sequential(sequential, num_branches=1)
        inputs = torch.randn(shape, dtype=dtype)
        outputs, expected = net(inputs), sequential(inputs)
        assert torch.equal(outputs, expected)
        backward(outputs.square().sum())
        backward(expected.square().sum())
        for name, parameter in sequential.named_parameters():
            gradient = net.get_parameter(name).grad
            assert parameter.grad is not None
            assert gradient is not None
            assert torch.equal(gradient.reshape(parameter.shape), parameter.grad)

    @PARAMETRIZED
    def test_branch_is_that_of_the_sequential(self, layers: Layers, shape: tuple[int, ...]) -> None:
        net, inputs = make_net(layers, 3), torch.randn(shape, dtype=torch.float64)
        for k, single in enumerate(single_nets(net, layers)):
            branch = net.branch(k)
            assert [type(layer) for layer in branch] == [type(layer) for layer in single]
            expected = single(inputs) if net.output_bias is None or k else single(inputs) - net.output_bias
            close(branch(inputs), expected)
            assert repr(branch[0]) == repr(single[0])

    def test_float32(self) -> None:
        net = make_net(BRANCHES["deep"], 4)
        inputs = torch.randn(3, 2, 6, 5, dtype=torch.float64)
        close(copy.deepcopy(net).float()(inputs.float()).double(), net(inputs), 1e-5)

    def test_any_size_behind_a_global_pool(self) -> None:
        net = make_net(BRANCHES["global_pool"], 2)
        assert net(torch.randn(3, 2, 9, 4, dtype=torch.float64)).shape == (3, 2)

    @pytest.mark.parametrize("shape", [(2, 6, 5), (4, 3, 6, 5), (4, 2, 30)])
    def test_inputs_of_another_shape(self, shape: tuple[int, ...]) -> None:
        net = make_net(BRANCHES["global_pool"], 2)
        with pytest.raises(ShapeError, match=r"expected \(num_samples, 2, height, width\)"):
            net(torch.zeros(shape, dtype=torch.float64))

    def test_inputs_of_another_size(self) -> None:
        net = make_net(BRANCHES["linear_local"], 2)
        with pytest.raises(ShapeError, match="gives 36 features a branch for inputs of this size; expected 27"):
            net(torch.zeros(4, 2, 6, 7, dtype=torch.float64))


class TestAveragedBranches:
    """When activations are averaged without being held."""

    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        calls: list[float] = []

        def recorded(*arguments: Any, **options: Any) -> Tensor:
            calls.append(options["negative_slope"])
            return averaged_outputs(*arguments, **options)

        monkeypatch.setattr(_convolutional_forward, "averaged_outputs", recorded)
        return calls

    def net(self, *modules: nn.Module, channels: int = 1, num_branches: int = 5) -> ParallelNet:
        layers = nn.Conv2d(channels, 3, 3), *modules, nn.Linear(3, 2)
        return ParallelNet(*layers, num_branches=num_branches)

    def test_taken_with_the_slope(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = self.calls(monkeypatch)
        tail = nn.AdaptiveAvgPool2d((1, 1)), nn.Identity(), nn.Flatten()
        for activations in ([nn.ReLU()], [nn.LeakyReLU(0.2), nn.Identity(), nn.LeakyReLU(0.5)]):
            net = self.net(*activations, *tail)
            outputs = net(torch.randn(4, 1, 6, 5))
            outputs.sum().backward()
        assert calls == [0.0, 0.1]
        with torch.no_grad():
            assert torch.equal(net(torch.ones(4, 1, 6, 5)), net(torch.ones(4, 1, 6, 5).requires_grad_()))

    @pytest.mark.parametrize(
        ("modules", "options"),
        [
            ([nn.ReLU(), nn.AvgPool2d((4, 3)), nn.Flatten()], {}),
            ([nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten()], {}),
            ([nn.AdaptiveAvgPool2d(1), nn.ReLU(), nn.Flatten()], {}),
            ([nn.AdaptiveAvgPool2d(1), nn.Flatten()], {}),
            ([nn.Identity(), nn.LeakyReLU(1.0), nn.AdaptiveAvgPool2d(1), nn.Flatten()], {}),
            ([nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()], {"num_branches": 1}),
            ([nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()], {"channels": 2}),  # patches of 18 numbers for 15 channels
        ],
    )
    def test_not_taken(self, monkeypatch: pytest.MonkeyPatch, modules: list[nn.Module], options: dict[str, int]) -> None:
        calls = self.calls(monkeypatch)
        self.net(*modules, **options)(torch.randn(4, options.get("channels", 1), 6, 5))
        assert not calls

    def test_not_taken_with_hooks_traced_or_under_autocast(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls, inputs = self.calls(monkeypatch), torch.randn(4, 1, 6, 5)
        net = self.net(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        expected = net(inputs)
        assert len(calls) == 1
        shapes: list[torch.Size] = []
        handle = net.get_submodule("1").register_forward_hook(lambda module, given, hidden: shapes.append(hidden.shape))
        close(net(inputs), expected, 1e-5)
        assert shapes == [(4, 15, 4, 3)]
        handle.remove()
        program = torch.export.export(net, (inputs,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=10**6)},))
        close(program.module()(inputs), expected, 1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            net(inputs)
        assert len(calls) == 1


class TestDropIn:
    @pytest.fixture
    def inputs(self) -> Tensor:
        return torch.randn(4, 2, 6, 5, dtype=torch.float64)

    @pytest.fixture(params=[None, 2])
    def net(self, request: pytest.FixtureRequest) -> ParallelNet:
        return make_net(BRANCHES["deep"], 3, request.param)

    def test_state_dict_has_the_names_of_the_sequential(self) -> None:
        for layers, _ in CASES:
            sequential, net = nn.Sequential(*layers()), ParallelNet(*layers(), num_branches=7)
            assert list(net.state_dict()) == list(sequential.state_dict())
            for name, tensor in list(sequential.state_dict().items())[:-1]:
                assert net.state_dict()[name].shape in ((7, *tensor.shape), tensor.shape)

    def test_draws_are_those_of_the_layer(self) -> None:
        net = ParallelNet(nn.Conv2d(3, 2, 4), nn.Flatten(), nn.Linear(2, 1), num_branches=4000)
        kernels = net.get_parameter("0.weight").detach()[1:]
        bound = 1 / math.sqrt(3 * 16)
        assert float(kernels.abs().max()) <= bound
        assert float(kernels.var()) == pytest.approx(bound**2 / 3, rel=0.02)

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
    def test_copies_are_independent(self, net: ParallelNet, inputs: Tensor, duplicate: Any) -> None:
        other = duplicate(net)
        before = other(inputs)
        with torch.no_grad():
            net.get_parameter("0.weight").zero_()
        assert torch.equal(other(inputs), before)
        assert not torch.equal(net(inputs), before)

    def test_compile_without_graph_break(self, net: ParallelNet, inputs: Tensor) -> None:
        compiled = torch.compile(net, fullgraph=True, backend="eager")
        close(compiled(inputs), net(inputs))

    def test_vmap_and_functional_call(self, net: ParallelNet, inputs: Tensor) -> None:
        zeros = {name: torch.zeros_like(parameter) for name, parameter in net.named_parameters()}
        assert not torch.func.functional_call(net, zeros, (inputs,)).any()
        close(torch.func.vmap(lambda one: net(one[None])[0])(inputs), net(inputs))

    def test_autocast(self, net: ParallelNet, inputs: Tensor) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert net.float()(inputs.float()).dtype == torch.bfloat16

    def test_meta_then_empty(self) -> None:
        net = ParallelNet(*BRANCHES["deep"](), num_branches=3, device="meta").to_empty(device="cpu")
        net.reset_parameters()
        assert torch.isfinite(net(torch.randn(2, 2, 6, 5))).all()

    def test_repr(self, net: ParallelNet) -> None:
        assert "num_branches=3, in_channels=2, out_channels=3, kernel_size=(2, 2)" in repr(net)


class TestBranches:
    @PARAMETRIZED
    def test_balancing_keeps_outputs_and_equalises_norms(self, layers: Layers, shape: tuple[int, ...]) -> None:
        net, inputs = make_net(layers, 3), torch.randn(shape, dtype=torch.float64)
        before, penalty = net(inputs), net.path_penalty()
        net.balance_()
        close(net(inputs), before)
        close(net.path_penalty(), penalty)
        norms = torch.stack([torch.linalg.matrix_norm(weight) for weight in net.branch_weights()])
        close(norms, norms[:1].expand_as(norms))

    @PARAMETRIZED
    def test_added_and_pruned_branches(self, layers: Layers, shape: tuple[int, ...]) -> None:
        net, inputs = make_net(layers, 2), torch.randn(shape, dtype=torch.float64)
        for name, parameter in net.named_parameters():
            if "bias" in name and name != "0.bias":
                nn.init.zeros_(parameter)  # hidden biases of added branches are zero
        other, before = copy.deepcopy(net), net(inputs).detach()
        parameters = list(net.parameters())
        net.add_branches_([weight.detach() for weight in other.branch_weights()])
        assert [id(p) for p in net.parameters()] == [id(p) for p in parameters]
        close(net(inputs), 2 * before)
        with torch.no_grad():
            next(iter(net.parameters()))[1:3].zero_()
            if "0.bias" in dict(net.named_parameters()):
                net.get_parameter("0.bias")[1:3].zero_()
            if "1.bias" in dict(net.named_parameters()):
                net.get_parameter("1.bias")[1:3].zero_()
        assert net.prune_().tolist() == [0, 3]
        close(net(inputs), before)

    def test_penalty_is_that_of_kernels_as_vectors(self) -> None:
        net = make_net(BRANCHES["global_pool_biases"], 3)
        kernels, bias = net.get_parameter("1.weight").detach(), net.get_parameter("1.bias").detach()
        first = (kernels.square().sum(dim=(1, 2, 3, 4)) + bias.square().sum(dim=1)).sqrt()
        last = net.get_parameter("5.weight").detach().square().sum(dim=(1, 2)).sqrt()
        close(net.path_penalty().detach(), (first * last).sum())
        close(net.path_penalty("power").detach(), (first**2 + last**2).sum() / 2)

    def test_added_weights_have_to_fit(self) -> None:
        net = make_net(BRANCHES["global_pool_biases"], 3)
        with pytest.raises(ShapeError, match=r"expected \(2, 3, 13\)"):
            net.add_branches_([torch.zeros(2, 3, 12), torch.zeros(2, 1, 3)])
        with pytest.raises(InvalidInputError, match="non-finite"):
            net.add_branches_([torch.full((2, 3, 13), math.nan), torch.zeros(2, 1, 3)])

    @pytest.mark.parametrize("optimizer_type", [PathSGD, PathAdamW])
    @pytest.mark.parametrize("penalty", ["product", "power"])
    def test_path_optimizers_lower_the_objective(self, optimizer_type: Any, penalty: str) -> None:
        net = make_net(BRANCHES["deep"], 4)
        inputs, targets = torch.randn(16, 2, 6, 5).double(), torch.randn(16, 2).double()
        optimizer = optimizer_type(net.path_param_groups(path_decay=1e-2, penalty=penalty), lr=1e-2)

        def objective() -> Tensor:
            return nn.functional.mse_loss(net(inputs), targets) + 1e-2 * net.path_penalty(penalty)

        before = float(objective().detach())
        for _ in range(60):
            optimizer.zero_grad()
            backward(nn.functional.mse_loss(net(inputs), targets))
            optimizer.step()
        assert float(objective().detach()) < before - 0.02

    def test_strong_decay_makes_branches_zero(self) -> None:
        net = make_net(BRANCHES["global_pool"], 4)
        optimizer = PathSGD(net.path_param_groups(path_decay=10.0), lr=0.05)
        for _ in range(40):
            optimizer.zero_grad()
            backward(net(torch.ones(2, 2, 4, 4).double()).square().mean())
            optimizer.step()
        assert float(net.path_penalty().detach()) == 0.0

    def test_l2_path_is_refused(self) -> None:
        net = make_net(BRANCHES["global_pool"], 2)
        with pytest.raises(UnsupportedModelError, match="'l2_path' penalty sums over paths"):
            net.path_penalty("l2_path")
        with pytest.raises(UnsupportedModelError, match="'l2_path' penalty sums over paths"):
            net.path_param_groups(0.1, "l2_path")


class TestRefusals:
    @pytest.mark.parametrize(
        ("layers", "message"),
        [
            ([nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(2, 1)], r"layer 2 .*Put nn.Flatten\(\) between"),
            ([nn.ReLU(), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 1)], "before the first convolution"),
            ([nn.AvgPool2d(2), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 1)], "before the first convolution"),
            ([nn.Conv2d(1, 2, 3), nn.Flatten(2), nn.Linear(2, 1)], "start_dim=1"),
            ([nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Flatten(), nn.Linear(2, 1)], "only once"),
            ([nn.Conv2d(1, 2, 3), nn.Flatten(), nn.MaxPool2d(2), nn.Linear(2, 1)], r"MaxPool2d.*behind nn.Flatten"),
            ([nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 1), nn.ReLU()], "behind the last layer with weights"),
            ([nn.Conv2d(1, 2, 3), nn.ReLU()], "behind the last layer with weights"),
            ([nn.Conv2d(1, 2, 3)], "is the last layer with weights; expected nn.Flatten"),
            ([nn.Conv2d(2, 2, 3, groups=2), nn.Flatten(), nn.Linear(2, 1)], "groups=2"),
            (
                [nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(2, 1)],
                "padding_mode='circular'",
            ),
            ([nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, return_indices=True), nn.Flatten(), nn.Linear(2, 1)], "return_indices=False"),
            ([nn.Conv2d(1, 2, 3), GatedReLU(9), nn.Flatten(), nn.Linear(2, 1)], "GatedReLU.*not supported"),
            ([nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 1)], "BatchNorm2d.*not supported"),
            ([nn.LazyConv2d(2, 3), nn.Flatten(), nn.Linear(2, 1)], "is lazy"),
            ([nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 3)), nn.Flatten(), nn.Linear(2, 1)], "Subclasses"),
            ([nn.ConvTranspose2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 1)], "ConvTranspose2d.*not supported"),
        ],
    )
    def test_layers(self, layers: list[nn.Module], message: str) -> None:
        with pytest.raises(UnsupportedModelError, match=message):
            ParallelNet(*layers, num_branches=2)

    @pytest.mark.parametrize(
        ("layers", "message"),
        [
            ([nn.Conv2d(1, 2, 3), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2, 1)], "takes 3 channels, but layer 0 gives 2"),
            ([nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(3, 1)], "a multiple of the 2 channels"),
            ([nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(4, 3), nn.Linear(6, 1)], "takes 6 features, but layer 2 gives 3"),
            ([nn.Conv2d(1, 2, 3), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(2, 1)], "is for 1 dimensions"),
        ],
    )
    def test_widths(self, layers: list[nn.Module], message: str) -> None:
        with pytest.raises(ShapeError, match=message):
            ParallelNet(*layers, num_branches=2)

    def test_tied_convolutions(self) -> None:
        layer = nn.Conv2d(2, 2, 3, padding=1)
        with pytest.raises(UnsupportedModelError, match="shares its weights with layer 0"):
            ParallelNet(layer, nn.ReLU(), layer, nn.Flatten(), nn.Linear(8, 1), num_branches=2)
