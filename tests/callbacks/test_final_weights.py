from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging

from torch_strongdual.callbacks import CertifyOptimality, GrowBranches
from torch_strongdual.certification import certify

from ..contracts.lightning_regression import IGNORE_ADVICE, PATH_DECAY, Regression, make_data, make_loader, make_trainer

SHORT = 0.05


class StopsAfterGrowth(pl.Callback):
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch == 1


class Replaces(pl.Callback):
    """Weights at the very end of training."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter.mul_(0.5)


def averaging() -> pl.Callback:
    return StochasticWeightAveraging(1e-2, swa_epoch_start=1)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("make_other", [averaging, Replaces])
@IGNORE_ADVICE
def test_the_last_certificate_is_of_the_weights_that_the_fit_leaves(tmp_path: Path, make_other: Any, background: bool) -> None:
    callback = CertifyOptimality(every_n_epochs=2, time_budget=SHORT, background=background)
    module = Regression()
    make_trainer(tmp_path, callback, make_other(), max_epochs=4).fit(module, make_loader(shuffle=True))
    assert [record.epoch for record in callback.history] == [0, 2, 3, 3]
    assert_of(module, callback)


@pytest.mark.parametrize("options", [{}, {"max_steps": 6}])
@IGNORE_ADVICE
def test_also_where_branches_came_after_the_last_certification(tmp_path: Path, options: dict[str, Any]) -> None:
    callback, module = CertifyOptimality(time_budget=0.5), Regression(num_branches=1)
    others = [GrowBranches(8)] if options else [GrowBranches(8), StopsAfterGrowth()]
    make_trainer(tmp_path, callback, *others, max_epochs=9, **options).fit(module, make_loader())
    assert module.net.num_branches > 1
    assert_of(module, callback)


def assert_of(module: Regression, callback: CertifyOptimality) -> None:
    direct = certify(module.net, *make_data(), loss=module.loss, path_decay=PATH_DECAY, time_budget=SHORT)
    assert callback.last_certificate is not None
    assert callback.history[-1].primal_value == callback.last_certificate.primal_value == direct.primal_value


@IGNORE_ADVICE
def test_nothing_is_certified_twice(tmp_path: Path) -> None:
    callback = CertifyOptimality(time_budget=SHORT)
    trainer = make_trainer(tmp_path, callback, max_epochs=2)
    trainer.fit(Regression(), make_loader())
    assert [record.epoch for record in callback.history] == [0, 1]


@IGNORE_ADVICE
def test_a_trainer_that_goes_on_keeps_history_and_bound(tmp_path: Path) -> None:
    callback, module = CertifyOptimality(time_budget=0.5), Regression()
    trainer = make_trainer(tmp_path, callback, max_epochs=2)
    trainer.fit(module, make_loader())
    first = list(callback.history)
    trainer.fit(module, make_loader())  # which is over at once
    assert callback.history == first
    assert trainer.fit_loop.max_epochs == 2
    trainer.fit_loop.max_epochs = 4
    callback.time_budget = 1e-9
    trainer.fit(module, make_loader())
    assert [record.epoch for record in callback.history] == [0, 1, 2, 3]
    assert callback.history[-1].dual_bound >= first[-1].dual_bound > 0.0
