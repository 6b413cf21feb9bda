"""Two processes, gloo, on the CPU: rank 0 certifies, all ranks know the same and stop together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor

from torch_strongdual.callbacks import CertifyOptimality
from torch_strongdual.certification import certify
from torch_strongdual.metrics import DualityGap

from ..contracts.lightning_regression import IGNORE_ADVICE, PATH_DECAY, Regression, make_data, make_loader, make_trainer

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded.*:DeprecationWarning"),  # forking, from Python 3.12 on
]


class Report(pl.Callback):
    """Writes what each rank knows at the end."""

    def __init__(self, folder: Path, certify: CertifyOptimality) -> None:
        self.folder, self.certify = folder, certify

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        known = {
            "history": [dataclasses.asdict(record) for record in self.certify.history],
            "metrics": {name: value.item() for name, value in trainer.callback_metrics.items()},
            "has_certificate": self.certify.last_certificate is not None,
            "epoch": trainer.current_epoch,
        }
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(known))


class LateReport(Report):
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_train_end(trainer, pl_module)


def fit_on_two(folder: Path, callback: CertifyOptimality, *others: pl.Callback, **options: Any) -> pl.Trainer:
    report = Report(folder, callback)
    module = options.pop("module", None) or Regression()
    options = {"strategy": "ddp_fork", "devices": 2} | options
    trainer = make_trainer(folder, callback, report, *others, **options)
    trainer.fit(module, make_loader(batch_size=3, shuffle=True))
    return trainer


def reports(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    first, second = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1))
    return first, second


@IGNORE_ADVICE
def test_all_ranks_know_the_same_and_the_numbers_are_right(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", monitor="certificate/relative_gap", save_top_k=-1)
    fit_on_two(tmp_path, CertifyOptimality(every_n_epochs=2, time_budget=0.5), saver, max_epochs=3, enable_checkpointing=True)
    first, second = reports(tmp_path)
    assert first["history"] == second["history"]
    assert first["metrics"] == second["metrics"]
    assert (first["has_certificate"], second["has_certificate"]) == (True, False)
    assert [record["epoch"] for record in first["history"]] == [0, 2]
    last = first["history"][-1]
    assert first["metrics"]["certificate/relative_gap"] == last["relative_gap"]
    stored = torch.load(tmp_path / "epoch=2.ckpt", weights_only=True)
    module = Regression()
    module.load_state_dict(stored["state_dict"])
    direct = certify(module.net, *make_data(), loss=module.loss, path_decay=PATH_DECAY, time_budget=0.1)
    assert last["primal_value"] == direct.primal_value  # of all twelve samples, each once
    (state,) = (value for key, value in stored["callbacks"].items() if key.startswith("CertifyOptimality"))
    assert state["history"] == first["history"]
    assert state["bound"]["solver"]["dual_bound"] == last["dual_bound"] > 0.0


@pytest.mark.parametrize("background", [False, True])
@IGNORE_ADVICE
def test_all_ranks_stop_together(tmp_path: Path, background: bool) -> None:
    callback = CertifyOptimality(rtol=0.5, time_budget=60.0, stop_when_certified=True, background=background)
    fit_on_two(tmp_path, callback, EarlyStopping("certificate/relative_gap", patience=50), max_epochs=50)
    first, second = reports(tmp_path)
    assert first["history"] == second["history"]
    assert first["epoch"] == second["epoch"] == first["history"][-1]["epoch"] + 1 < 50


@IGNORE_ADVICE
def test_a_mistake_seen_by_rank_zero_ends_all_ranks(tmp_path: Path) -> None:
    inputs, targets = make_data()
    with pytest.raises(Exception, match="The network cannot be certified: ShapeError") as caught:
        fit_on_two(tmp_path, CertifyOptimality(data=(inputs[:5], targets)), max_epochs=1)
    assert MisconfigurationException.__name__ in str(caught.value) + type(caught.value).__name__


class Doubled(Regression):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return 2.0 * super().training_step(batch, batch_idx)


@IGNORE_ADVICE
def test_another_loss_than_the_certified_one_ends_all_ranks(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="what is trained is not what would be certified"):
        fit_on_two(tmp_path, CertifyOptimality(time_budget=0.05), max_epochs=1, module=Doubled())


class Halves(pl.Callback):
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter.mul_(0.5)


@IGNORE_ADVICE
def test_weights_put_in_place_at_the_end_are_certified_on_two_ranks(tmp_path: Path) -> None:
    callback = CertifyOptimality(every_n_epochs=9, time_budget=0.05)
    fit_on_two(tmp_path, callback, Halves(), LateReport(tmp_path, callback), max_epochs=2)
    first, second = reports(tmp_path)
    assert first["history"] == second["history"]
    assert [record["epoch"] for record in first["history"]] == [0, 1, 1]


class LogsGap(Regression):
    """Rank 1 has no time to prove anything."""

    def __init__(self) -> None:
        super().__init__()
        self.gap = DualityGap(self.net, loss=self.loss, path_decay=PATH_DECAY, time_budget=0.2)

    def on_train_start(self) -> None:
        if self.global_rank == 1:
            self.gap.time_budget = 1e-9

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.gap.update(*batch)
        self.log("gap", self.gap, on_epoch=True, on_step=False)
        return super().training_step(batch, batch_idx)


@IGNORE_ADVICE
def test_the_metric_is_the_same_on_all_ranks(tmp_path: Path) -> None:
    fit_on_two(tmp_path, CertifyOptimality(time_budget=0.05), max_epochs=1, module=LogsGap())
    first, second = reports(tmp_path)
    assert first["metrics"]["gap"] == second["metrics"]["gap"] > first["metrics"]["certificate/relative_gap"]


@pytest.mark.slow
@IGNORE_ADVICE
def test_spawned_processes_agree_too(tmp_path: Path) -> None:
    trainer = fit_on_two(tmp_path, CertifyOptimality(time_budget=0.2), max_epochs=2, strategy="ddp_spawn")
    first, second = reports(tmp_path)
    assert first["history"] == second["history"]
    assert trainer.callback_metrics["certificate/relative_gap"].item() == first["history"][-1]["relative_gap"]
