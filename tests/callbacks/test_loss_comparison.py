from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from torch_strongdual.callbacks import CertifyOptimality
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import ParallelNet

from ..contracts.lightning_regression import IGNORE_ADVICE, PATH_DECAY, Regression, make_data, make_loader, make_trainer

SHORT = 0.05


class Scaled(Regression):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return 0.5 * super().training_step(batch, batch_idx)


class OtherTargets(Regression):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return super().training_step((batch[0], batch[1] - 1.0), batch_idx)


class Noise(Regression):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return super().training_step((batch[0] + torch.randn_like(batch[0]), batch[1]), batch_idx)


class Behind(Regression):
    """Another layer is trained behind the network."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.loss(self.head(self.net(batch[0])), batch[1])
        return loss


class Penalised(Regression):
    """The path penalty is part of the loss."""

    kind = "product"

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        penalty = self.net.path_penalty(self.kind)
        return super().training_step(batch, batch_idx) + PATH_DECAY * penalty


class PenalisedByPowers(Penalised):
    kind = "power"


class Squeezed(Regression):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.loss(self.net(batch[0]).squeeze(1), batch[1])
        return loss


class OtherThanModule(Regression):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Any]:  # type: ignore[override]
        return {"loss": super().training_step(batch, batch_idx), "more": 1.0}


def flat_targets() -> DataLoader[Any]:
    inputs, targets = make_data()
    return DataLoader(TensorDataset(inputs, targets.squeeze(1)), batch_size=4)


def plain_adam(net: ParallelNet) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=0.01)


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (Scaled, "what is trained is not what would be certified. Return loss"),
        (OtherTargets, r"pass what network and loss are given by `data=`"),
        (Noise, "MSELoss of the network is"),
        (Behind, "MSELoss of the network is"),
        (Penalised, "The difference is the path penalty, which the optimizer applies already"),
    ],
)
@IGNORE_ADVICE
def test_another_loss_is_refused_before_the_first_step(tmp_path: Path, module: type[Regression], match: str) -> None:
    trained = module()
    before = trained.net.state_dict()[next(iter(trained.net.state_dict()))].clone()
    for options in ({"fast_dev_run": True}, {"max_epochs": 1}, {"max_epochs": 1, "accumulate_grad_batches": 2}):
        with pytest.raises(MisconfigurationException, match=match):
            make_trainer(tmp_path, CertifyOptimality(time_budget=SHORT), **options).fit(trained, make_loader())
        assert torch.equal(next(trained.net.parameters()), before)


@pytest.mark.filterwarnings("ignore:Using a target size")
@IGNORE_ADVICE
def test_targets_that_are_broadcast_are_told(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"targets have shape \(4,\) and the outputs \(4, 1\)"):
        make_trainer(tmp_path, CertifyOptimality(time_budget=SHORT)).fit(Regression(), flat_targets())


@IGNORE_ADVICE
def test_another_loss_than_the_one_given_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="where L1Loss of the network is"):
        make_trainer(tmp_path, CertifyOptimality(loss=nn.L1Loss(), time_budget=SHORT)).fit(Regression(), make_loader())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 3},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"precision": "64-true"},
        {"gradient_clip_val": 10.0},
    ],
)
@pytest.mark.parametrize("module", [Regression, OtherThanModule])
@IGNORE_ADVICE
def test_the_same_loss_passes(tmp_path: Path, options: dict[str, Any], module: type[Regression]) -> None:
    callback = CertifyOptimality(time_budget=SHORT)
    make_trainer(tmp_path, callback, max_epochs=1, **options).fit(module(), make_loader())
    assert len(callback.history) == 1


@IGNORE_ADVICE
def test_what_is_no_penalty_is_refused_also_where_one_is_stated(tmp_path: Path) -> None:
    for callback in (CertifyOptimality(path_decay=9 * PATH_DECAY), CertifyOptimality(path_decay=PATH_DECAY, penalty="l2_path")):
        with pytest.raises(MisconfigurationException, match="what is trained is not what would be certified"):
            make_trainer(tmp_path, callback).fit(Penalised(make_optimizer=plain_adam), make_loader())


@IGNORE_ADVICE
def test_gradient_scaling_is_undone(tmp_path: Path) -> None:
    for module, is_the_same in ((Regression, True), (Scaled, False)):
        callback = CertifyOptimality(path_decay=PATH_DECAY, time_budget=SHORT)
        precision = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
        trainer = make_trainer(tmp_path, callback, max_epochs=1, plugins=[precision])
        if is_the_same:
            trainer.fit(module(make_optimizer=plain_adam), make_loader())
            assert len(callback.history) == 1
        else:
            with pytest.raises(MisconfigurationException, match="what is trained is not"):
                trainer.fit(module(make_optimizer=plain_adam), make_loader())


@pytest.mark.parametrize("module", [Regression, Penalised, PenalisedByPowers])
@IGNORE_ADVICE
def test_a_penalty_in_the_loss_passes_where_it_is_stated(tmp_path: Path, module: Any) -> None:
    callback = CertifyOptimality(path_decay=PATH_DECAY, time_budget=SHORT)
    make_trainer(tmp_path, callback, max_epochs=1).fit(module(make_optimizer=plain_adam), make_loader())
    assert len(callback.history) == 1


@IGNORE_ADVICE
def test_sums_and_flat_outputs_pass(tmp_path: Path) -> None:
    for module, loader in (
        (Regression(loss=HalfSquaredLoss()), make_loader(batch_size=12)),
        (Squeezed(), flat_targets()),
    ):
        callback = CertifyOptimality(time_budget=SHORT)
        make_trainer(tmp_path, callback, max_epochs=1).fit(module, loader)
        assert len(callback.history) == 1


@IGNORE_ADVICE
def test_data_given_are_the_word_of_the_user(tmp_path: Path) -> None:
    callback = CertifyOptimality(data=make_data(), time_budget=SHORT)
    make_trainer(tmp_path, callback, max_epochs=1).fit(Noise(), make_loader())
    assert len(callback.history) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@IGNORE_ADVICE
def test_where_the_numbers_say_nothing_training_goes_on(tmp_path: Path, value: float) -> None:
    module = Regression()
    with torch.no_grad():
        next(module.net.parameters()).fill_(value)
    callback = CertifyOptimality(time_budget=SHORT)
    with pytest.warns(UserWarning, match="cannot be certified"):
        make_trainer(tmp_path, callback, max_epochs=1).fit(module, make_loader())
    assert len(callback.history) == 1
