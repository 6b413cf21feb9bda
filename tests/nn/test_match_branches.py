from __future__ import annotations

import pytest
import torch
from torch import nn

from torch_strongdual.nn import GatedReLU, ParallelNet, match_branches_


def make(num_branches: int, *, seed: int = 0) -> ParallelNet:
    torch.manual_seed(seed)
    return ParallelNet(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1), num_branches=num_branches)


@pytest.mark.parametrize("number", [1, 4, 9])
def test_a_network_of_any_number_of_branches_can_be_loaded(number: int) -> None:
    stored, net = make(number), make(4, seed=1)
    parameters = list(net.parameters())
    match_branches_(net, stored.state_dict())
    net.load_state_dict(stored.state_dict())
    inputs = torch.randn(5, 3)
    assert torch.equal(net(inputs), stored(inputs))
    assert all(new is old for new, old in zip(net.parameters(), parameters, strict=True))


def test_nested_networks_are_found_by_name() -> None:
    module, stored = nn.ModuleDict({"a": make(2), "b": nn.Sequential(make(3))}), nn.ModuleDict()
    stored["a"], stored["b"] = make(5), nn.Sequential(make(1))
    match_branches_(module, stored.state_dict())
    module.load_state_dict(stored.state_dict())
    outer = {f"model.{name}": value for name, value in stored.state_dict().items()}
    again = nn.ModuleDict({"a": make(2), "b": nn.Sequential(make(3))})
    for prefix in ("model.", "model"):
        match_branches_(again, outer, prefix)
    again.load_state_dict(stored.state_dict())


def test_gated_networks_take_the_gates_stored() -> None:
    def gated(number: int) -> ParallelNet:
        return ParallelNet(nn.Linear(3, 2), GatedReLU(3), nn.Linear(2, 1), num_branches=number)

    stored, net = gated(5), gated(2)
    match_branches_(net, stored.state_dict())
    net.load_state_dict(stored.state_dict())
    assert torch.equal(net.gate_vectors()[0], stored.gate_vectors()[0])


def test_what_is_not_stored_stays() -> None:
    net = make(4)
    match_branches_(net, {})
    match_branches_(nn.Linear(2, 2), make(2).state_dict())
    assert net.num_branches == 4
