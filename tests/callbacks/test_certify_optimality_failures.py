"""Nothing that certification meets ends a fit, and nothing unproven is shown as proven."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

from torch_strongdual.callbacks import CertifyOptimality
from torch_strongdual.certification import CertificateStatus
from torch_strongdual.certification.oracles import AbstractDualNormOracle, AngularSweepOracle
from torch_strongdual.errors import NumericalWarning, SoundnessError, StrongDualWarning
from torch_strongdual.optim import PathAdamW

from ..contracts.failing_oracles import LyingOracle, RaisingOracle, VacuousOracle
from ..contracts.lightning_regression import IGNORE_ADVICE, PATH_DECAY, Regression, make_data, make_loader, make_trainer


class Poison(pl.Callback):
    """Makes the weights NaN in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.current_epoch == self.epoch:
            with torch.no_grad():
                pl_module.net.branch_weights()[-1].fill_(math.nan)


def fit(folder: Path, oracle: AbstractDualNormOracle | None, *others: pl.Callback, **options: Any) -> CertifyOptimality:
    callback = CertifyOptimality(oracle=oracle, time_budget=0.3)
    module = options.pop("module", None) or Regression()
    watch = EarlyStopping("certificate/relative_gap", patience=100)  # ends the fit if the metric is missing or not finite
    trainer = make_trainer(folder, callback, watch, *others, **({"max_epochs": 3} | options))
    trainer.fit(module, make_loader(shuffle=True))
    assert trainer.current_epoch == trainer.max_epochs
    assert all(torch.isfinite(value) for value in trainer.callback_metrics.values())
    assert [record.epoch for record in callback.history] == list(range(trainer.current_epoch))
    return callback


@pytest.mark.parametrize("error", [RuntimeError("no luck"), MemoryError("too large"), ValueError("a bug"), RecursionError()])
@IGNORE_ADVICE
def test_an_oracle_that_raises_is_a_warning(tmp_path: Path, error: Exception) -> None:
    oracle = RaisingOracle(error)
    with pytest.warns(StrongDualWarning, match=rf"epoch \d failed, training goes on: {type(error).__name__}"):
        callback = fit(tmp_path, oracle)
    assert callback.last_certificate is None
    assert callback.last_error is error
    assert oracle.calls == 3  # it is asked again each time
    for record in callback.history:
        assert -1e-200 < record.dual_bound <= 0.0
        assert record.relative_gap == pytest.approx(1.0, rel=1e-15)
        assert math.isfinite(record.primal_value)


@IGNORE_ADVICE
def test_a_later_failure_keeps_the_bound_and_the_objective_stays_current(tmp_path: Path) -> None:
    oracle = RaisingOracle(RuntimeError("late"), is_broken=False)

    class Break(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            oracle.is_broken = trainer.current_epoch >= 1

    with pytest.warns(StrongDualWarning, match=r"epoch \d failed, training goes on: RuntimeError: late"):
        callback = fit(tmp_path, oracle, Break())
    first, second, third = callback.history
    assert 0.0 < first.dual_bound == second.dual_bound == third.dual_bound
    assert len({record.primal_value for record in callback.history}) == 3
    assert third.relative_gap == (third.primal_value - third.dual_bound) / third.primal_value


@IGNORE_ADVICE
def test_an_oracle_that_proves_nothing_leaves_the_bound_zero(tmp_path: Path) -> None:
    callback = fit(tmp_path, VacuousOracle())
    assert callback.last_error is None
    assert callback.last_certificate is not None
    assert not callback.last_certificate.is_certified
    assert all(-1e-200 < record.dual_bound <= 0.0 for record in callback.history)


def nearly_optimal() -> Regression:
    """Trained so far that a bound above the optimum shows, and training hardly any more."""
    module = Regression(lr=1e-5)
    inputs, targets = make_data()
    for lr in (0.05, 0.01, 0.002):
        optimizer = PathAdamW(module.net.path_param_groups(PATH_DECAY), lr=lr)
        for _ in range(200):
            optimizer.zero_grad()
            module.loss(module.net(inputs), targets).backward()
            optimizer.step()
    return module


@IGNORE_ADVICE
def test_a_wrong_bound_is_withdrawn_loudly_and_its_oracle_not_asked_again(tmp_path: Path) -> None:
    oracle = LyingOracle()
    with pytest.warns(StrongDualWarning, match="A DUAL BOUND WAS WRONG"):
        callback = fit(tmp_path, oracle, module=nearly_optimal(), max_epochs=1)
    assert isinstance(callback.last_error, SoundnessError)
    assert callback.last_error.dual_bound > callback.last_error.primal_value
    assert callback.last_certificate is None
    calls = oracle.calls
    with pytest.warns(StrongDualWarning, match="A DUAL BOUND WAS WRONG") as caught:
        callback = fit(tmp_path, oracle, module=nearly_optimal(), max_epochs=4)
    assert sum("WRONG" in str(warning.message) for warning in caught) == 1
    assert oracle.calls == 2 * calls > 0
    assert isinstance(callback.last_error, SoundnessError)
    for record in callback.history:
        assert -1e-200 < record.dual_bound <= 0.0
        assert record.relative_gap == pytest.approx(1.0, rel=1e-15)
    assert callback.state_dict()["bound"]["solver"]["dual_bound"] <= 0.0


@IGNORE_ADVICE
def test_the_network_of_the_test_above_is_certified_by_an_honest_oracle(tmp_path: Path) -> None:
    callback = fit(tmp_path, AngularSweepOracle(), module=nearly_optimal(), max_epochs=1)
    assert callback.last_certificate is not None
    assert callback.last_certificate.is_certified


@IGNORE_ADVICE
def test_keyboard_interrupts_pass(tmp_path: Path) -> None:
    callback = CertifyOptimality(oracle=RaisingOracle(KeyboardInterrupt()))
    with pytest.raises(SystemExit):  # what Lightning makes of it
        make_trainer(tmp_path, callback).fit(Regression(), make_loader())
    assert callback.history == []


@pytest.mark.parametrize("epoch", [0, 1])
@IGNORE_ADVICE
def test_a_diverged_network_has_a_gap_of_one_hundred_percent(tmp_path: Path, epoch: int) -> None:
    with pytest.warns(NumericalWarning, match=r"epoch \d cannot be certified"):
        callback = fit(tmp_path, None, Poison(epoch))
    assert callback.last_certificate is not None
    assert callback.last_certificate.status is CertificateStatus.NUMERICAL_FAILURE
    for record in callback.history[epoch:]:
        assert math.isnan(record.primal_value)
        assert record.relative_gap == 1.0
    bounds = [record.dual_bound for record in callback.history]
    assert bounds == sorted(bounds)
    assert all(record.relative_gap < 1.0 for record in callback.history[:epoch])


@IGNORE_ADVICE
def test_infinite_inputs_prove_nothing(tmp_path: Path) -> None:
    """Which they are is said, and said once."""
    inputs, targets = make_data()
    inputs[3, 1] = math.inf
    callback = CertifyOptimality(data=(inputs, targets))
    with pytest.warns(NumericalWarning) as caught:
        make_trainer(tmp_path, callback, max_epochs=3).fit(Regression(), make_loader())
    (message,) = [str(warning.message) for warning in caught if warning.category is NumericalWarning]
    assert "epoch 0 cannot be certified" in message
    assert "due to `inputs`, where 1 of 24 numbers is not finite, the first in row 3" in message
    assert callback.last_certificate is not None
    assert callback.last_certificate.status is CertificateStatus.NUMERICAL_FAILURE


@IGNORE_ADVICE
def test_failures_leave_training_and_random_numbers_alone(tmp_path: Path) -> None:
    class Drawing(RaisingOracle):
        def bound(self, *args: Any) -> Any:
            torch.rand(3)
            return super().bound(*args)

    weights = []
    for callbacks in ([CertifyOptimality(oracle=Drawing(RuntimeError("x")))], []):
        torch.manual_seed(3)
        module = Regression()
        with pytest.warns(StrongDualWarning) if callbacks else contextlib.nullcontext():
            make_trainer(tmp_path, *callbacks).fit(module, make_loader(shuffle=True))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]))
    assert torch.equal(*weights)
