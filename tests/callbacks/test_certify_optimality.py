from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from torch_strongdual.callbacks import CertifyOptimality
from torch_strongdual.certification import CertificateStatus, certify

from ..contracts.lightning_regression import (
    IGNORE_ADVICE,
    NUM_SAMPLES,
    PATH_DECAY,
    Regression,
    make_data,
    make_loader,
    make_trainer,
)
from ..references.convex_program import convex_program_optimum

METRICS = {f"certificate/{name}" for name in ("primal_value", "dual_bound", "duality_gap", "relative_gap", "seconds")}
SHORT = 0.05


def fit(folder: Path, callback: pl.Callback, *others: pl.Callback, **options: Any) -> pl.Trainer:
    loader = options.pop("loader", None) or make_loader(shuffle=True)
    module = options.pop("module", None) or Regression()
    trainer = make_trainer(folder, callback, *others, **options)
    trainer.fit(module, loader)
    return trainer


class Stop(pl.Callback):
    """Ends the fit in the middle of an epoch."""

    def __init__(self, at_step: int) -> None:
        self.at_step = at_step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.at_step


class Watch(pl.Callback):
    """Copies the metrics as callbacks that monitor them see them."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen.append({name: value.clone() for name, value in trainer.callback_metrics.items()})


# When it runs


@pytest.mark.parametrize(
    ("every", "max_epochs", "expected"),
    [(1, 4, [0, 1, 2, 3]), (3, 8, [0, 3, 6, 7]), (3, 7, [0, 3, 6]), (100, 3, [0, 2]), (5, 1, [0])],
)
@IGNORE_ADVICE
def test_it_runs_in_epoch_zero_every_n_epochs_and_last(
    tmp_path: Path, every: int, max_epochs: int, expected: list[int]
) -> None:
    callback = CertifyOptimality(every, time_budget=SHORT)
    fit(tmp_path, callback, max_epochs=max_epochs)
    assert [record.epoch for record in callback.history] == expected


@IGNORE_ADVICE
def test_the_last_certificate_is_of_the_final_weights_however_the_fit_ends(tmp_path: Path) -> None:
    for options, others in (({"max_epochs": 9}, [Stop(at_step=8)]), ({"max_epochs": -1, "max_steps": 8}, [])):
        callback, module = CertifyOptimality(5, time_budget=SHORT), Regression()
        trainer = fit(tmp_path, callback, *others, module=module, **options)
        assert trainer.global_step == 8
        assert [record.epoch for record in callback.history] == [0, 2]
        assert callback.last_certificate is not None
        certificate = certify(module.net, *make_data(), loss=module.loss, path_decay=PATH_DECAY, time_budget=SHORT)
        assert callback.last_certificate.primal_value == certificate.primal_value


@pytest.mark.parametrize(
    ("epoch", "max_epochs", "due"), [(0, 9, True), (1, 9, False), (4, 9, True), (8, 9, True), (9, None, False), (9, -1, False)]
)
def test_is_due_once_there_are_numbers(epoch: int, max_epochs: int | None, due: bool) -> None:
    callback = CertifyOptimality(4)
    assert callback.is_due(epoch, max_epochs)
    callback.load_state_dict(
        {
            "history": [
                dict.fromkeys(("primal_value", "dual_bound", "relative_gap", "path_decay", "seconds"), 0.0) | {"epoch": 0}
            ],
            "bound": {},
        }
    )
    assert callback.is_due(epoch, max_epochs) == due


# What it says


@IGNORE_ADVICE
def test_bounds_enclose_the_optimum_and_never_fall(tmp_path: Path) -> None:
    callback, module = CertifyOptimality(4, rtol=1e-3, time_budget=1.0), Regression()
    fit(tmp_path, callback, module=module, max_epochs=13)
    inputs, targets = (part.double().numpy() for part in make_data())
    beta = 0.5 * NUM_SAMPLES * PATH_DECAY  # of half the sum of squares
    optimum = 2.0 / NUM_SAMPLES * convex_program_optimum(inputs, targets, "squared", beta).value
    bounds = [record.dual_bound for record in callback.history]
    assert bounds == sorted(bounds)
    assert 0.9 * optimum <= bounds[-1] <= optimum * (1.0 + 1e-8)
    for record in callback.history:
        assert record.primal_value >= optimum * (1.0 - 1e-8)
        assert record.relative_gap == (record.primal_value - record.dual_bound) / record.primal_value
        assert record.path_decay == PATH_DECAY
        assert record.seconds < 2.0
    certificate = certify(module.net, *make_data(), loss=module.loss, path_decay=PATH_DECAY)
    assert callback.history[-1].primal_value == certificate.primal_value


@IGNORE_ADVICE
def test_every_epoch_shows_the_last_numbers_in_float64(tmp_path: Path) -> None:
    callback, watch = CertifyOptimality(2, time_budget=SHORT), Watch()
    fit(tmp_path, callback, watch, max_epochs=4)
    records = [callback.history[index] for index in (0, 0, 1, 2)]
    for seen, record in zip(watch.seen, records, strict=True):
        assert seen.keys() == METRICS
        for name, value in seen.items():
            assert value.dtype == torch.float64
            assert value.item() == getattr(record, name.removeprefix("certificate/"))


@IGNORE_ADVICE
def test_loggers_and_the_progress_bar_show_it(tmp_path: Path) -> None:
    callback = CertifyOptimality(2, time_budget=SHORT, name="proof")
    trainer = fit(tmp_path, callback, max_epochs=3, logger=CSVLogger(tmp_path))
    with (Path(trainer.loggers[0].log_dir or "") / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["proof/relative_gap"]]
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    assert [float(row["proof/dual_bound"]) for row in rows] == [callback.history[i].dual_bound for i in (0, 0, 1)]
    assert set(trainer.progress_bar_metrics) == {"proof/relative_gap"}
    assert fit(tmp_path, CertifyOptimality(prog_bar=False, time_budget=SHORT), max_epochs=1).progress_bar_metrics == {}


@IGNORE_ADVICE
def test_without_an_oracle_in_time_the_gap_is_one_hundred_percent(tmp_path: Path) -> None:
    callback = CertifyOptimality(time_budget=1e-9)
    fit(tmp_path, callback, max_epochs=1)
    assert callback.last_certificate is not None
    assert callback.last_certificate.status is CertificateStatus.BUDGET_EXHAUSTED
    assert callback.last_error is None
    assert -1e-200 < callback.history[0].dual_bound <= callback.last_certificate.dual_bound


# What others do with it


@pytest.mark.parametrize("with_validation", [False, True])
@IGNORE_ADVICE
def test_early_stopping_and_checkpoints_monitor_the_gap(tmp_path: Path, with_validation: bool) -> None:
    callback = CertifyOptimality(time_budget=0.2)
    early = EarlyStopping("certificate/relative_gap", patience=100, stopping_threshold=0.5)
    best = ModelCheckpoint(tmp_path / "best", monitor="certificate/relative_gap", save_top_k=1, filename="{epoch}")
    trainer = make_trainer(tmp_path, early, best, callback, max_epochs=60, enable_checkpointing=True)
    trainer.fit(Regression(), make_loader(shuffle=True), make_loader() if with_validation else None)
    gaps = [record.relative_gap for record in callback.history]
    assert len(gaps) < 60
    assert all(gap >= 0.5 for gap in gaps[:-1])
    assert gaps[-1] < 0.5
    assert best.best_model_score is not None
    assert best.best_model_score.dtype == torch.float64
    assert best.best_model_score.item() == min(gaps)
    assert Path(best.best_model_path).name == f"epoch={gaps.index(min(gaps))}.ckpt"


@IGNORE_ADVICE
def test_validation_several_times_an_epoch_and_the_sanity_check_do_not_certify(tmp_path: Path) -> None:
    callback = CertifyOptimality(time_budget=SHORT)
    trainer = make_trainer(tmp_path, callback, max_epochs=2, val_check_interval=1, num_sanity_val_steps=2)
    trainer.fit(Regression(), make_loader(shuffle=True), make_loader())
    assert [record.epoch for record in callback.history] == [0, 1]
    assert trainer.callback_metrics.keys() == METRICS | {"val_loss"}


@IGNORE_ADVICE
def test_it_stops_as_soon_as_the_network_is_certified(tmp_path: Path) -> None:
    callback = CertifyOptimality(rtol=0.5, time_budget=0.5, stop_when_certified=True)
    trainer = fit(tmp_path, callback, max_epochs=60)
    gaps = [record.relative_gap for record in callback.history]
    assert trainer.current_epoch == len(gaps) < 60
    assert all(gap > 0.5 for gap in gaps[:-1])
    assert gaps[-1] <= 0.5
    assert callback.last_certificate is not None
    assert callback.last_certificate.is_certified


@IGNORE_ADVICE
def test_min_epochs_counts_more_than_the_wish_to_stop(tmp_path: Path) -> None:
    callback = CertifyOptimality(rtol=0.999, time_budget=1.0, stop_when_certified=True)
    assert fit(tmp_path, callback, max_epochs=5, min_epochs=3).current_epoch == 3


@IGNORE_ADVICE
def test_gradient_accumulation_changes_nothing(tmp_path: Path) -> None:
    callback, module = CertifyOptimality(time_budget=SHORT), Regression()
    trainer = fit(tmp_path, callback, module=module, accumulate_grad_batches=2, max_epochs=2)
    assert trainer.global_step == 4
    assert [record.epoch for record in callback.history] == [0, 1]
    certificate = certify(module.net, *make_data(), loss=module.loss, path_decay=PATH_DECAY, time_budget=SHORT)
    assert callback.history[-1].primal_value == certificate.primal_value


# Which problem it is of


@IGNORE_ADVICE
def test_a_changing_path_decay_is_another_problem(tmp_path: Path) -> None:
    class Schedule(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.optimizers[0].param_groups[0]["path_decay"] = (0.5, 0.5, 0.01, 0.0)[trainer.current_epoch]

    callback, module = CertifyOptimality(time_budget=0.5), Regression()
    with pytest.warns(UserWarning, match="epoch 3 failed.*expected one, above zero"):
        fit(tmp_path, callback, Schedule(), module=module, max_epochs=4)
    assert [record.path_decay for record in callback.history[:3]] == [0.5, 0.5, 0.01]
    assert math.isnan(callback.history[3].path_decay)
    inputs, targets = (part.double().numpy() for part in make_data())
    for record in callback.history[:3]:
        beta = 0.5 * NUM_SAMPLES * record.path_decay
        optimum = 2.0 / NUM_SAMPLES * convex_program_optimum(inputs, targets, "squared", beta).value
        assert 0.0 < record.dual_bound <= optimum * (1.0 + 1e-8)  # the bound for 0.5 is above the optimum for 0.01
    assert callback.history[1].dual_bound > callback.history[2].primal_value


@IGNORE_ADVICE
def test_one_callback_serves_several_trainers(tmp_path: Path) -> None:
    callback = CertifyOptimality(time_budget=SHORT)
    fit(tmp_path, callback, max_epochs=3)
    fit(tmp_path, callback, max_epochs=2, loader=make_loader(6, shuffle=True))
    assert [record.epoch for record in callback.history] == [0, 1]
    assert callback.last_certificate is not None
    assert callback.last_certificate.dual_point is not None
    assert len(callback.last_certificate.dual_point) == 6


@IGNORE_ADVICE
def test_two_callbacks_need_different_names(tmp_path: Path) -> None:
    two = CertifyOptimality(time_budget=SHORT), CertifyOptimality(time_budget=SHORT, name="other", penalty="power")
    assert fit(tmp_path, *two, max_epochs=1).callback_metrics.keys() == METRICS | {
        name.replace("certificate", "other") for name in METRICS
    }
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        make_trainer(tmp_path, CertifyOptimality(), CertifyOptimality(net="net"))


@IGNORE_ADVICE
def test_a_bare_trainer_certifies_without_logging(tmp_path: Path) -> None:
    callback = CertifyOptimality(time_budget=SHORT)
    trainer = pl.Trainer(barebones=True, max_epochs=2, callbacks=[callback], accelerator="cpu", devices=1)
    trainer.fit(Regression(), make_loader())
    assert [record.epoch for record in callback.history] == [0, 1]
    assert trainer.callback_metrics == {}
