"""Layers with hooks are called, and torch.fx records calls: the same outputs as from their weights alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, prune

from torch_strongdual.errors import UnsupportedModelError
from torch_strongdual.nn import ParallelNet

from .._typed_torch import backward
from ._networks import BRANCHES

masked: Callable[..., Any] = prune.l1_unstructured
make_permanent: Callable[..., Any] = prune.remove

CONVOLUTIONS: dict[str, Callable[[], list[nn.Module]]] = {
    "global_average": lambda: [nn.Conv1d(1, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2)],
    "two_convolutions": lambda: [
        nn.Conv2d(1, 2, 2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2, 3, 2, padding=1),
        nn.LeakyReLU(),
        nn.Flatten(),
        nn.Linear(27, 4),
        nn.ReLU(),
        nn.Linear(4, 2),
    ],
}
ALL = BRANCHES | CONVOLUTIONS
SHAPES = {"global_average": (5, 1, 7), "two_convolutions": (5, 1, 6, 6)}


@pytest.fixture(params=[(kind, count) for kind in ALL for count in (1, 3)], ids=lambda p: f"{p[0]}-{p[1]}")
def case(request: pytest.FixtureRequest) -> tuple[ParallelNet, Tensor]:
    kind, num_branches = request.param
    inputs = torch.randn(SHAPES.get(kind, (5, 3)), dtype=torch.float64)
    return ParallelNet(*ALL[kind](), num_branches=num_branches, dtype=torch.float64), inputs


def layers_of(net: ParallelNet) -> list[nn.Module]:
    """Those with parameters."""
    return [layer for layer in net.children() if list(layer.parameters())]


def test_hooks_are_called_and_outputs_and_gradients_are_the_same(case: tuple[ParallelNet, Tensor]) -> None:
    net, inputs = case
    hooked, seen = copy.deepcopy(net), []
    for layer in layers_of(hooked):
        layer.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].shape))
        layer.register_forward_hook(lambda module, arguments, outputs: seen.append(outputs.shape))
    for model in (net, hooked):
        backward(model(inputs).square().sum())
    torch.testing.assert_close(hooked(inputs), net(inputs))
    for one, other in zip(net.parameters(), hooked.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad)
    assert len(seen) == 4 * len(layers_of(net))
    assert seen[-1] == net(inputs).shape


def test_hooks_on_activations_see_all_branches_at_once() -> None:
    """In chunks a hook that keeps what it sees would keep the last chunk."""
    layers = BRANCHES["three_layers"]()
    net = ParallelNet(*layers, num_branches=5, chunk_size=2, recompute=True)
    shapes: list[torch.Size] = []
    net.get_submodule("1").register_forward_hook(lambda module, arguments, outputs: shapes.append(outputs.shape))
    backward(net(torch.randn(7, 3)).sum())
    assert shapes == [(5, 5, 7)]


def test_backward_hooks_are_called() -> None:
    net, inputs = ParallelNet(*BRANCHES["two_layers"](), num_branches=3), torch.randn(5, 3, requires_grad=True)
    seen: list[Any] = []
    for layer in layers_of(net):
        layer.register_full_backward_hook(lambda module, before, after: seen.append(before))
    backward(net(inputs).sum())
    assert [gradients[0].shape for gradients in seen] == [(3, 4, 5), (5, 3)]


def test_graph_of_fx_serves_all_sizes(case: tuple[ParallelNet, Tensor]) -> None:
    net, inputs = case
    graph = fx.symbolic_trace(net)
    for rows in (inputs, inputs[:1], torch.cat([inputs, inputs])):
        torch.testing.assert_close(graph(rows), net(rows))
    called = {node.target for node in graph.graph.nodes if node.op == "call_module"}
    assert called == {name for name, layer in net.named_children() if type(layer).__module__.startswith("torch.nn")} - behind(
        net
    )
    torch.testing.assert_close(fx.symbolic_trace(nn.Sequential(net, nn.Tanh()))(inputs), net(inputs).tanh())


def behind(net: ParallelNet) -> set[str]:
    """Modules that do nothing: identities at the ends."""
    names = [name for name, _ in net.named_children()]
    first, last = (names.index(net._linear_names[i]) for i in (0, -1))
    return {*names[:first], *names[last + 1 :]}


@pytest.mark.parametrize("kind", ["two_layers", "three_layers", "global_average"])
class TestComputedWeights:
    """Old and new ways to compute a weight from other parameters: trained, and read, as they are now."""

    def net(self, kind: str) -> tuple[ParallelNet, Tensor]:
        return ParallelNet(*ALL[kind](), num_branches=3), torch.randn(SHAPES.get(kind, (5, 3)))

    @pytest.mark.parametrize(
        "compute",
        [
            lambda layer: masked(layer, "weight", amount=0.5),
            lambda layer: nn.utils.weight_norm(layer),
            lambda layer: nn.utils.spectral_norm(layer),
            parametrizations.weight_norm,
        ],
        ids=["prune", "weight_norm", "spectral_norm", "parametrization"],
    )
    @pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
    def test_train(self, kind: str, compute: Callable[[nn.Module], Any]) -> None:
        net, inputs = self.net(kind)
        compute(net.get_submodule("0"))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            before = net(inputs).detach()
            penalty = net.path_penalty().item()
            optimizer.zero_grad()
            backward(net(inputs).square().sum() + net.path_penalty())
            optimizer.step()
            assert net.path_penalty().item() != penalty
            assert not torch.equal(net(inputs), before)

    def test_masked_weights_stay_zero(self, kind: str) -> None:
        net, inputs = self.net(kind)
        masked(net.get_submodule("0"), "weight", amount=0.5)
        is_zero = net.branch_weights()[0] == 0
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        backward(net(inputs).square().sum())
        optimizer.step()
        assert is_zero.any()
        assert torch.equal(net.branch_weights()[0] == 0, is_zero)
        make_permanent(net.get_submodule("0"), "weight")
        net.path_param_groups(0.1)

    def test_branches_cannot_come_or_go(self, kind: str) -> None:
        net, _ = self.net(kind)
        weights = [weight.detach() for weight in net.branch_weights()]
        parametrizations.weight_norm(net.get_submodule("0"))
        for call in (lambda: net.add_branches_(weights), net.prune_, net.balance_, net.reset_parameters):
            with pytest.raises(UnsupportedModelError, match=r"weight of linear layer 0 .*remove_parametrizations"):
                call()
