"""Certification beside training: the same numbers, in the same order, and never in its way."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from torch_strongdual.callbacks import CertifyOptimality
from torch_strongdual.certification import certify
from torch_strongdual.errors import StrongDualWarning

from ..contracts.failing_oracles import HeldOracle, RaisingOracle
from ..contracts.lightning_regression import IGNORE_ADVICE, PATH_DECAY, Regression, make_data, make_loader, make_trainer

AMPLE = 600.0  # a time budget that nothing exhausts


class Gatekeeper(pl.Callback):
    """Holds the oracle from the end of one epoch to the middle of another."""

    def __init__(self, oracle: HeldOracle, *, closed_after: int, opened_in: int) -> None:
        self.oracle, self.closed_after, self.opened_in = oracle, closed_after, opened_in

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.closed_after:
            self.oracle.gate.clear()
            self.oracle.asked.clear()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.current_epoch == self.opened_in:
            assert self.oracle.asked.wait(60.0)  # it has begun, and not ended
            self.oracle.gate.set()


class Watch(pl.Callback):
    """Notes the dual bound shown at the end of each epoch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen.append(float(trainer.callback_metrics["certificate/primal_value"]))


def fit(folder: Path, callback: CertifyOptimality, *others: pl.Callback, **options: Any) -> Regression:
    module = Regression()
    make_trainer(folder, callback, *others, **options).fit(module, make_loader())
    return module


def numbers(callback: CertifyOptimality) -> list[dict[str, Any]]:
    return [dataclasses.asdict(record) | {"seconds": None} for record in callback.history]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("certification")]


@pytest.mark.parametrize("every", [1, 3])
@IGNORE_ADVICE
def test_the_numbers_are_those_of_the_foreground(tmp_path: Path, every: int) -> None:
    both = [CertifyOptimality(every, time_budget=AMPLE, rtol=1e-3, background=background) for background in (False, True)]
    modules = [fit(tmp_path, callback, max_epochs=6) for callback in both]
    assert numbers(both[0]) == numbers(both[1])
    assert len({record.primal_value for record in both[1].history}) == len(both[1].history) >= 3
    first, second = (callback.last_certificate for callback in both)
    assert first is not None
    assert second is not None
    assert first.dual_point is not None
    assert second.dual_point is not None
    assert torch.equal(first.dual_point, second.dual_point)
    assert all(torch.equal(*pair) for pair in zip(*[module.parameters() for module in modules], strict=True))
    assert not threads()


@IGNORE_ADVICE
def test_training_goes_on_meanwhile_and_the_numbers_arrive_when_they_are_there(tmp_path: Path) -> None:
    oracle, watch = HeldOracle(), Watch()
    callback = CertifyOptimality(3, oracle=oracle, time_budget=AMPLE, rtol=1e-3, background=True)
    keeper = Gatekeeper(oracle, closed_after=3, opened_in=5)
    fit(tmp_path, callback, watch, keeper, max_epochs=8)
    assert [record.epoch for record in callback.history] == [0, 3, 6, 7]
    values = [record.primal_value for record in callback.history]
    assert watch.seen[:5] == [values[0]] * 5  # that of epoch 3 is not known before epoch 5
    assert watch.seen[7] == values[3]  # of the last epoch, for which training waits
    plain = CertifyOptimality(3, time_budget=AMPLE, rtol=1e-3)
    fit(tmp_path, plain, max_epochs=8)
    assert values == [record.primal_value for record in plain.history]


@IGNORE_ADVICE
def test_others_can_monitor_it_from_the_first_epoch_on(tmp_path: Path) -> None:
    callback = CertifyOptimality(2, time_budget=AMPLE, background=True)
    fit(tmp_path, callback, EarlyStopping("certificate/relative_gap", patience=100), max_epochs=5)
    assert [record.epoch for record in callback.history] == [0, 2, 4]


@IGNORE_ADVICE
def test_it_stops_once_certified_and_the_last_certificate_is_of_the_final_weights(tmp_path: Path) -> None:
    callback = CertifyOptimality(rtol=0.5, time_budget=AMPLE, stop_when_certified=True, background=True)
    module = fit(tmp_path, callback, max_epochs=200)
    assert callback.history[-1].epoch < 199
    assert callback.last_certificate is not None
    assert callback.last_certificate.is_certified
    direct = certify(module.net, *make_data(), loss=module.loss, path_decay=PATH_DECAY, time_budget=0.05)
    assert callback.last_certificate.primal_value == direct.primal_value


class Failure(pl.Callback):
    """Training breaks while a certification runs."""

    def __init__(self, oracle: HeldOracle) -> None:
        self.oracle = oracle

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.current_epoch == 2:
            threading.Timer(0.2, self.oracle.gate.set).start()
            raise ArithmeticError("training broke")


@IGNORE_ADVICE
def test_an_exception_waits_for_what_runs_and_loses_nothing(tmp_path: Path) -> None:
    oracle = HeldOracle()
    callback = CertifyOptimality(oracle=oracle, time_budget=AMPLE, background=True)
    with pytest.raises(ArithmeticError, match="training broke"):
        fit(tmp_path, callback, Failure(oracle), Gatekeeper(oracle, closed_after=1, opened_in=-1), max_epochs=4)
    assert [record.epoch for record in callback.history] == [0, 1]
    assert not threads()
    assert [record["epoch"] for record in callback.state_dict()["history"]] == [0, 1]


@IGNORE_ADVICE
def test_failures_are_warnings_where_they_arrive(tmp_path: Path) -> None:
    error = RuntimeError("no luck")
    callback = CertifyOptimality(oracle=RaisingOracle(error), time_budget=AMPLE, background=True)
    with pytest.warns(StrongDualWarning, match=r"epoch \d failed, training goes on: RuntimeError: no luck"):
        fit(tmp_path, callback, max_epochs=3)
    assert callback.last_error is error
    assert [record.epoch for record in callback.history] == [0, 1, 2]


@IGNORE_ADVICE
def test_an_objective_that_cannot_be_found_is_a_failure_of_its_epoch(tmp_path: Path) -> None:
    class NoPenalty(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.optimizers[0].param_groups[0]["path_decay"] = PATH_DECAY if trainer.current_epoch != 1 else 0.0

    callback = CertifyOptimality(time_budget=AMPLE, background=True)
    with pytest.warns(UserWarning, match=r"epoch 1 failed.*expected one, above zero"):
        fit(tmp_path, callback, NoPenalty(), max_epochs=3)
    assert [record.path_decay == PATH_DECAY for record in callback.history] == [True, False, True]


# Checkpoints


def checkpoints(folder: Path, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{epoch}-{step}", save_top_k=-1, **options)


def stored(folder: Path, name: str) -> dict[str, Any]:
    states = torch.load(folder / name, weights_only=True)["callbacks"]
    (state,) = (value for key, value in states.items() if key.startswith("CertifyOptimality"))
    return dict(state)


@IGNORE_ADVICE
def test_a_checkpoint_does_not_wait_and_a_resumed_fit_certifies_what_it_missed(tmp_path: Path) -> None:
    options: dict[str, Any] = {"time_budget": AMPLE, "rtol": 1e-3, "background": True}
    oracle = HeldOracle()
    whole = CertifyOptimality(2, oracle=oracle, **options)
    keeper = Gatekeeper(oracle, closed_after=2, opened_in=3)
    fit(tmp_path, whole, keeper, checkpoints(tmp_path), max_epochs=6, enable_checkpointing=True)
    state = stored(tmp_path, "epoch=2-step=9.ckpt")
    assert [record["epoch"] for record in state["history"]] == [0]
    assert state["unfinished_epoch"] == 2
    shutil.copy(tmp_path / "epoch=2-step=9.ckpt", tmp_path / "start.ckpt")
    for background in (False, True):
        resumed = CertifyOptimality(2, **(options | {"background": background}))
        trainer = make_trainer(tmp_path, resumed, checkpoints(tmp_path), max_epochs=6, enable_checkpointing=True)
        trainer.fit(Regression(seed=9), make_loader(), ckpt_path=tmp_path / "start.ckpt")
        assert numbers(resumed) == numbers(whole)


@IGNORE_ADVICE
def test_a_checkpoint_of_later_weights_waits(tmp_path: Path) -> None:
    oracle = HeldOracle()
    callback = CertifyOptimality(2, oracle=oracle, time_budget=AMPLE, background=True)
    keeper = Gatekeeper(oracle, closed_after=2, opened_in=3)
    saver = checkpoints(tmp_path, every_n_train_steps=10)
    fit(tmp_path, callback, keeper, saver, max_epochs=4, enable_checkpointing=True)
    state = stored(tmp_path, "epoch=3-step=10.ckpt")
    assert [record["epoch"] for record in state["history"]] == [0, 2]
    assert state["unfinished_epoch"] == -1
    assert state["bound"]["solver"]["dual_bound"] == state["history"][-1]["dual_bound"]
    assert [record.epoch for record in callback.history] == [0, 2, 3]
