"""Mistakes in the set-up are found before the first step, and the message says what to do."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import nn

from torch_strongdual.callbacks import CertifyOptimality
from torch_strongdual.certification import certify
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import GatedReLU, ParallelNet
from torch_strongdual.optim import PathAdamW, PathSGD

from ..contracts.lightning_regression import IGNORE_ADVICE, PATH_DECAY, Regression, make_data, make_loader, make_trainer


class Steps(pl.Callback):
    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.count += 1


def refused(folder: Path, callback: CertifyOptimality, module: pl.LightningModule, match: str, **options: Any) -> None:
    steps = Steps()
    loader = options.pop("loader", None) or make_loader(shuffle=True)
    with pytest.raises(MisconfigurationException, match=match):
        make_trainer(folder, callback, steps, **options).fit(module, loader)
    assert steps.count == 0


def plain_adam(net: ParallelNet, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), **options)


class OwnOptimizer(torch.optim.SGD):
    """Might do something with ``path_decay``."""


def two_groups(net: ParallelNet, decays: tuple[float, float]) -> torch.optim.Optimizer:
    """The layers in groups of their own, as no path optimizer takes them."""
    groups = [{"params": [p], "path_decay": decay} for p, decay in zip(net.parameters(), decays, strict=True)]
    return OwnOptimizer(groups, lr=0.1)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"every_n_epochs": 0}, "`every_n_epochs` is 0; expected an integer >= 1"),
        ({"every_n_epochs": True}, "`every_n_epochs` is True"),
        ({"every_n_epochs": 1.0}, "`every_n_epochs` is 1.0"),
        ({"net": ""}, "`net` is ''"),
        ({"net": nn.Linear(1, 1)}, "`net` is Linear"),
        ({"loss": nn.MSELoss}, "`loss` is .*MSELoss.*expected a loss module"),
        ({"loss": nn.MSELoss(reduction="none")}, "expected a loss module"),
        ({"loss": nn.PoissonNLLLoss()}, "`loss` is PoissonNLLLoss"),
        ({"path_decay": 0.0}, "`path_decay` is 0.0; expected a number > 0"),
        ({"path_decay": float("nan")}, "`path_decay` is nan"),
        ({"penalty": "l1"}, "`penalty` is 'l1'; expected one of"),
        ({"data": "train.csv"}, "`data` is of type str; expected a pair of tensors"),
        ({"data": (torch.ones(2, 2),)}, "`data` is of type tuple"),
        ({"data": [1.0, 2.0]}, "`data` is of type list"),
        ({"oracle": "auto"}, "`oracle` is of type str"),
        ({"rtol": 0.0}, "`rtol` is 0.0"),
        ({"rtol": None}, "`rtol` is None"),
        ({"time_budget": -1.0}, "`time_budget` is -1.0"),
        ({"background": "yes"}, "`background` is 'yes'"),
        ({"name": ""}, "`name` is ''"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(MisconfigurationException, match=match):
        CertifyOptimality(**arguments)


# Network


class TwoNets(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = ParallelNet(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False), num_branches=2)


class NoNet(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))  # type: ignore[assignment]
        self.make_optimizer = partial(plain_adam, lr=0.1)


@IGNORE_ADVICE
def test_the_network_has_to_be_found(tmp_path: Path) -> None:
    refused(tmp_path, CertifyOptimality(), NoNet(), r"NoNet has 0 ParallelNets \(none\).*by `net=")
    refused(tmp_path, CertifyOptimality(), TwoNets(), r"TwoNets has 2 ParallelNets \(net, teacher\).*by `net=")
    refused(tmp_path, CertifyOptimality(net="student"), TwoNets(), "no submodule of that name.*ParallelNets are net, teacher")
    refused(
        tmp_path, CertifyOptimality(net="loss", path_decay=0.1), TwoNets(), "UnsupportedModelError: A MSELoss has no branches"
    )


@IGNORE_ADVICE
def test_a_named_network_is_certified(tmp_path: Path) -> None:
    for module, path_decay in ((TwoNets(), None), (NoNet(), PATH_DECAY)):
        callback = CertifyOptimality(net="net", path_decay=path_decay, time_budget=0.05)
        make_trainer(tmp_path, callback, max_epochs=1).fit(module, make_loader())
        direct = certify(module.net, *make_data(), loss=nn.MSELoss(), path_decay=PATH_DECAY, time_budget=0.05)
        assert callback.history[0].primal_value == direct.primal_value


@IGNORE_ADVICE
def test_networks_made_in_configure_model_are_found(tmp_path: Path) -> None:
    class Late(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.made = self.net
            del self.net

        def configure_model(self) -> None:
            self.net = self.made

    module = Late()
    del module._modules["made"]
    object.__setattr__(module, "made", Regression().net)
    callback = CertifyOptimality(time_budget=0.05)
    make_trainer(tmp_path, callback, max_epochs=1).fit(module, make_loader())
    assert len(callback.history) == 1


@IGNORE_ADVICE
def test_networks_without_a_dual_are_refused(tmp_path: Path) -> None:
    module = Regression()
    module.net = ParallelNet(
        nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1, bias=False), num_branches=2
    )
    refused(tmp_path, CertifyOptimality(), module, "UnsupportedModelError: Hidden linear layer.*bias=False")
    module = Regression()
    module.net = ParallelNet(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1), num_branches=2)
    refused(tmp_path, CertifyOptimality(), module, "ShapeError: `inputs` has 2 features a sample; expected 3")


@IGNORE_ADVICE
def test_gated_networks_are_certified_in_their_scope(tmp_path: Path) -> None:
    module = Regression()
    module.net = ParallelNet(nn.Linear(2, 2, bias=False), GatedReLU(2), nn.Linear(2, 1, bias=False), num_branches=4)
    callback = CertifyOptimality(time_budget=0.2)
    make_trainer(tmp_path, callback, max_epochs=2).fit(module, make_loader())
    assert callback.last_certificate is not None
    assert callback.last_certificate.scope.name == "GATED"


# Loss


class TwoLosses(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.HuberLoss()


@IGNORE_ADVICE
def test_the_loss_has_to_be_found(tmp_path: Path) -> None:
    refused(tmp_path, CertifyOptimality(), Regression(loss=nn.KLDivLoss()), r"has 0 attributes.*\(none\).*by `loss=`")
    refused(tmp_path, CertifyOptimality(), TwoLosses(), r"has 2 attributes.*\(loss, other\).*by `loss=`")
    callback = CertifyOptimality(loss=nn.MSELoss(), time_budget=0.05)
    make_trainer(tmp_path, callback, max_epochs=1).fit(TwoLosses(), make_loader())
    assert len(callback.history) == 1


@IGNORE_ADVICE
def test_the_loss_has_to_fit_the_targets(tmp_path: Path) -> None:
    refused(tmp_path, CertifyOptimality(loss=nn.BCEWithLogitsLoss()), Regression(), r"InvalidInputError: .*outside \[0, 1\]")


@pytest.mark.parametrize("loss", [nn.MSELoss(reduction="sum"), HalfSquaredLoss()])
@IGNORE_ADVICE
def test_sums_over_mini_batches_need_the_path_decay_of_all_data(tmp_path: Path, loss: nn.Module) -> None:
    refused(
        tmp_path, CertifyOptimality(), Regression(loss=loss), "is a sum over samples, and an epoch has 3 batches.*`path_decay=`"
    )
    for callback, batch_size in ((CertifyOptimality(path_decay=0.3), 4), (CertifyOptimality(), 12)):
        callback.time_budget = 0.05
        make_trainer(tmp_path, callback, max_epochs=1).fit(Regression(loss=loss), make_loader(batch_size=batch_size))
        assert callback.history[0].path_decay == (0.3 if batch_size == 4 else PATH_DECAY)


# Penalty


@pytest.mark.parametrize(
    ("make_optimizer", "match"),
    [
        (partial(plain_adam, lr=0.1), "are: none; expected one, above zero"),
        (partial(plain_adam, lr=0.1, weight_decay=0.1), "are: none"),
        (partial(two_groups, decays=(0.1, 0.2)), r"are: 0.1 \(product\), 0.2 \(product\); expected one"),
        (partial(two_groups, decays=(0.1, 0.0)), r"are: 0.1 \(product\), none; expected one"),
    ],
)
@IGNORE_ADVICE
def test_the_penalty_has_to_be_found(tmp_path: Path, make_optimizer: Any, match: str) -> None:
    refused(tmp_path, CertifyOptimality(), Regression(make_optimizer=make_optimizer), match)
    refused(tmp_path, CertifyOptimality(), Regression(make_optimizer=make_optimizer), match, fast_dev_run=True)
    callback = CertifyOptimality(path_decay=0.2, penalty="power", time_budget=0.05)
    make_trainer(tmp_path, callback, max_epochs=1).fit(Regression(make_optimizer=make_optimizer), make_loader())
    assert callback.last_certificate is not None
    assert (callback.last_certificate.path_decay, callback.last_certificate.penalty) == (0.2, "power")


def path_optimizer(net: ParallelNet, kind: type, penalty: str) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = kind(net.path_param_groups(0.07, penalty), lr=0.01)
    return optimizer


@pytest.mark.parametrize("kind", [PathAdamW, PathSGD])
@pytest.mark.parametrize("penalty", ["product", "power", "l2_path"])
@IGNORE_ADVICE
def test_the_penalty_is_that_of_the_optimizer(tmp_path: Path, kind: type, penalty: str) -> None:
    module = Regression(make_optimizer=partial(path_optimizer, kind=kind, penalty=penalty))
    module.net = ParallelNet(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1), num_branches=4)  # biases: two groups
    callback = CertifyOptimality(time_budget=0.05)
    make_trainer(tmp_path, callback, max_epochs=1).fit(module, make_loader())
    assert callback.last_certificate is not None
    assert (callback.last_certificate.path_decay, callback.last_certificate.penalty) == (0.07, penalty)


# Strategy


@pytest.mark.parametrize("kind", [FSDPStrategy, ModelParallelStrategy])
def test_sharding_strategies_are_refused(tmp_path: Path, kind: type) -> None:
    trainer = make_trainer(tmp_path)
    assert isinstance(trainer.strategy, SingleDeviceStrategy)
    CertifyOptimality().setup(trainer, Regression(), "fit")
    trainer.strategy.__class__ = kind  # a real one needs GPUs
    CertifyOptimality().setup(trainer, Regression(), "test")
    with pytest.raises(MisconfigurationException, match=f"The strategy is {kind.__name__}.*expected a single device or DDP"):
        CertifyOptimality().setup(trainer, Regression(), "fit")
