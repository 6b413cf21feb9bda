from __future__ import annotations

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from torch_strongdual.callbacks._trained_objective import (
    PathPenalty,
    find_loss,
    find_net,
    find_path_penalty,
    is_supported_loss,
)
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import ParallelNet
from torch_strongdual.optim import PathSGD

from ..contracts.lightning_regression import Regression


@pytest.mark.parametrize(
    ("module", "is_supported"),
    [
        (nn.MSELoss(), True),
        (nn.MSELoss(reduction="sum"), True),
        (nn.MSELoss(reduction="none"), False),
        (nn.HuberLoss(), True),
        (nn.SmoothL1Loss(), True),
        (nn.L1Loss(), True),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)), True),
        (nn.CrossEntropyLoss(weight=torch.ones(5)), True),
        (HalfSquaredLoss(), True),
        (nn.BCELoss(), False),
        (nn.NLLLoss(), False),
        (nn.Linear(1, 1), False),
        (nn.ModuleList(), False),
    ],
)
def test_supported_losses_are_told_from_other_modules(module: nn.Module, is_supported: bool) -> None:
    assert is_supported_loss(module) == is_supported


def test_subclasses_of_losses_may_compute_something_else() -> None:
    class Mine(nn.MSELoss):
        pass

    assert not is_supported_loss(Mine())


def test_nested_parts_are_found() -> None:
    inner = Regression()
    outer = nn.ModuleDict({"system": inner})
    assert find_net(outer, None) is inner.net
    assert find_net(outer, "system.net") is inner.net
    assert find_loss(outer, None) is inner.loss
    assert find_net(inner.net, None) is inner.net


def test_a_compiled_network_is_found() -> None:
    module = Regression()
    net = module.net
    module.net = torch.compile(net, backend="eager")  # type: ignore[assignment]
    assert find_net(module, None) is net


def test_the_loss_given_counts_more_than_attributes() -> None:
    loss = nn.L1Loss()
    assert find_loss(Regression(), loss) is loss


def make_net() -> ParallelNet:
    return ParallelNet(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1), num_branches=3)


def test_the_penalty_is_that_of_the_weights_not_of_other_groups() -> None:
    net, head = make_net(), nn.Linear(1, 1)
    optimizers = [
        torch.optim.SGD(head.parameters(), lr=0.1),
        PathSGD([*net.path_param_groups(0.3, "power"), {"params": list(make_net().parameters())}], lr=0.1),
    ]
    assert find_path_penalty(net, optimizers, path_decay=None, penalty=None) == PathPenalty(0.3, "power")
    assert find_path_penalty(net, optimizers, path_decay=None, penalty="l2_path") == PathPenalty(0.3, "l2_path")
    assert find_path_penalty(net, optimizers, path_decay=0.7, penalty=None) == PathPenalty(0.7, "product")
    with pytest.raises(MisconfigurationException, match="are: none; expected one"):
        find_path_penalty(make_net(), optimizers, path_decay=None, penalty=None)


def test_the_penalty_follows_the_optimizer() -> None:
    net = make_net()
    optimizer = PathSGD(net.path_param_groups(0.3), lr=0.1)
    optimizer.param_groups[0]["path_decay"] = 0.2
    assert find_path_penalty(net, [optimizer], path_decay=None, penalty=None).path_decay == 0.2
    optimizer.param_groups[0]["path_decay"] = 0.0
    with pytest.raises(MisconfigurationException, match="are: none; expected one, above zero"):
        find_path_penalty(net, [optimizer], path_decay=None, penalty=None)


class OwnOptimizer(torch.optim.SGD):
    """Might do something with ``path_decay``."""


def test_each_optimizer_may_have_its_own() -> None:
    net = make_net()
    group = net.path_param_groups(0.3)[0]
    optimizers = [
        OwnOptimizer([group | {"params": [p], "path_decay": d}], lr=0.1)
        for p, d in zip(net.parameters(), (1.0, 2.0, 1.0), strict=False)
    ]
    with pytest.raises(MisconfigurationException, match=r"are: 1 \(product\), 2 \(product\); expected one"):
        find_path_penalty(net, optimizers, path_decay=None, penalty=None)


def test_optimizers_of_torch_ignore_a_path_decay() -> None:
    net = Regression().net
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        optimizer = kind(net.path_param_groups(0.1), lr=0.1)
        with pytest.raises(MisconfigurationException, match=r"are: none; .* ignore `path_decay`"):
            find_path_penalty(net, [optimizer], path_decay=None, penalty=None)
