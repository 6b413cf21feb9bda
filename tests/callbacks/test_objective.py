from __future__ import annotations

import pytest
import torch

from torch_strongdual.callbacks._objective import Objective, found_now
from torch_strongdual.callbacks._trained_objective import PathPenalty
from torch_strongdual.errors import UnsupportedModelError

from ..contracts.lightning_regression import Regression

PENALTY = PathPenalty(0.1, "product")


def test_it_shares_nothing_with_the_network() -> None:
    net = Regression().net
    objective = Objective.of(net, PENALTY)
    before = [weight.clone() for weight in objective.weights.weights]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
    assert objective.penalty is PENALTY
    assert all(torch.equal(weight, old) for weight, old in zip(objective.weights.weights, before, strict=True))
    assert torch.equal(Objective.of(net, PENALTY).weights.weights[0], torch.ones_like(before[0]))


def test_it_is_found_at_once_and_given_later() -> None:
    calls = []

    def find() -> Objective:
        calls.append(1)
        return Objective.of(Regression().net, PENALTY)

    later = found_now(find)
    assert calls == [1]
    assert later() is later()
    assert calls == [1]


def test_what_cannot_be_found_is_an_error_later() -> None:
    later = found_now(lambda: Objective.of(torch.nn.Tanh(), PENALTY))
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="Tanh"):
            later()
