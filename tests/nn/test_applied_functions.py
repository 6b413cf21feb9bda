"""``net.apply(fn)``, as initialisation uses it, finds the layers of branches as torch has them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from torch_strongdual.errors import UnsupportedModelError
from torch_strongdual.nn import ParallelNet

from ._networks import BRANCHES, make_net


def by_class(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.constant_(module.bias, 0.5)


def by_attribute(module: nn.Module) -> None:
    if isinstance(getattr(module, "weight", None), nn.Parameter):
        nn.init.xavier_normal_(module.weight)  # type: ignore[arg-type]


def by_replacement(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        module.weight = nn.Parameter(torch.full_like(module.weight, 0.25))
        module.weight.data = torch.full_like(module.weight, 0.5)


@pytest.mark.parametrize("kind", BRANCHES)
def test_one_branch_is_initialised_as_the_sequential_is(kind: str) -> None:
    net = make_net(kind, 1)
    sequential = net.branch(0)
    for model in (net, sequential):
        torch.manual_seed(3)
        assert model.apply(by_class) is model
    for name, parameter in sequential.named_parameters():
        assert torch.equal(net.get_parameter(name).reshape(parameter.shape), parameter)


@pytest.mark.parametrize("init", [by_class, by_attribute], ids=["class", "attribute"])
def test_fans_are_those_of_a_branch(init: Callable[[nn.Module], None]) -> None:
    """Of the stack they would be five times as large, and numbers smaller."""
    net = ParallelNet(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 1, bias=False), num_branches=20)
    torch.manual_seed(0)
    weight = net.apply(init).get_parameter("0.weight")
    assert float(weight.detach().std()) == pytest.approx((2 / (40 + 60)) ** 0.5, rel=0.02)
    assert len(torch.unique(weight.detach()[:, 0, 0])) == 20


def test_kernels_of_convolutions() -> None:
    net = ParallelNet(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1), num_branches=4)
    before = net.get_parameter("0.weight").detach().clone()
    net.apply(by_class)
    assert bool((net.get_parameter("0.weight") != before).all())
    assert bool((net.get_parameter("0.bias") == 0.5).all())


def test_values_put_in_place_of_others_are_kept() -> None:
    net = make_net("two_layers", 3).apply(by_replacement)
    parameters = {id(parameter) for parameter in net.parameters()}
    assert bool((net.get_parameter("0.weight") == 0.5).all())
    assert parameters == {id(parameter) for parameter in net.parameters()}


def test_a_function_of_any_module_changes_weights_once() -> None:
    def double(module: nn.Module) -> None:
        for parameter in module.parameters(recurse=False):
            parameter.data.mul_(2.0)

    net = make_net("two_layers", 3)
    before = copy.deepcopy(net)
    net.apply(double)
    for parameter, old in zip(net.parameters(), before.parameters(), strict=True):
        assert torch.equal(parameter, 2.0 * old)


def test_freezing() -> None:
    def freeze(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.weight.requires_grad_(False)

    net = make_net("two_layers", 3).apply(freeze)
    assert [parameter.requires_grad for parameter in net.parameters()] == [
        name.endswith("bias") for name, _ in net.named_parameters()
    ]


def test_freezing_some_branches_is_refused() -> None:
    seen: list[nn.Module] = []

    def freeze_first(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.requires_grad_(bool(seen))
            seen.append(module)

    with pytest.raises(UnsupportedModelError, match="weight requires gradients in some branches and not in others"):
        make_net("two_layers", 3).apply(freeze_first)


def test_another_shape_is_refused() -> None:
    def widen(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(torch.zeros(9, 9))

    with pytest.raises(UnsupportedModelError, match=r"weight of branch 0 became of shape \(9, 9\)"):
        make_net("two_layers", 3).apply(widen)


def test_hooks_are_on_what_the_network_calls() -> None:
    net = make_net("two_layers", 3)
    seen: list[type[nn.Module]] = []

    def register(module: nn.Module) -> None:
        if not list(module.children()):
            module.register_forward_hook(lambda called, args, output: seen.append(type(called)))

    net.apply(register)
    net(torch.randn(2, 3, dtype=torch.float64))
    assert len(seen) == len(list(net.children()))


def test_a_function_that_changes_nothing_may_come_between_forward_and_backward() -> None:
    net = make_net("two_layers", 3)
    outputs = net(torch.randn(2, 3, dtype=torch.float64)).sum()
    net.apply(lambda module: None)
    torch.autograd.backward(outputs)
    assert net.get_parameter("0.weight").grad is not None


def test_masked_and_unallocated_weights_are_left_to_the_function() -> None:
    net = make_net("two_layers", 3)
    prune.l1_unstructured(net.get_submodule("0"), "weight", amount=0.5)  # type: ignore[no-untyped-call]
    before = net.get_parameter("0.weight_orig").detach().clone()
    net.apply(by_class)
    assert torch.equal(net.get_parameter("0.weight_orig"), before)
    make_net("two_layers", 3).to("meta").apply(by_class)
