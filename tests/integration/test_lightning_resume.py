"""A fit that is interrupted and resumed keeps its bound, if it goes on with the same problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn

from torch_strongdual.callbacks import CertificationRecord, CertifyOptimality
from torch_strongdual.errors import StrongDualWarning

from ..contracts.failing_oracles import VacuousOracle
from ..contracts.lightning_regression import IGNORE_ADVICE, Regression, make_data, make_loader, make_trainer

CHECKPOINT = "first.ckpt"


def saver(folder: Path, name: str) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename=name, save_top_k=1, every_n_epochs=1)


def train_first(folder: Path, **options: Any) -> CertifyOptimality:
    """Three epochs, then a checkpoint."""
    callback = CertifyOptimality(time_budget=0.5, **options)
    trainer = make_trainer(folder, callback, saver(folder, "first"), max_epochs=3, enable_checkpointing=True)
    trainer.fit(Regression(), make_loader())
    assert (folder / CHECKPOINT).exists()
    return callback


def resume(folder: Path, callback: CertifyOptimality, *others: Any, **options: Any) -> None:
    module = options.pop("module", None) or Regression(seed=9)
    loader = options.pop("loader", None) or make_loader()
    others = (*others, saver(folder, "second"))
    trainer = make_trainer(folder, callback, *others, enable_checkpointing=True, **({"max_epochs": 5} | options))
    trainer.fit(module, loader, ckpt_path=folder / CHECKPOINT)


def bounds(callback: CertifyOptimality) -> list[float]:
    return [record.dual_bound for record in callback.history]


@IGNORE_ADVICE
def test_the_bound_goes_on_where_it_was(tmp_path: Path) -> None:
    first = train_first(tmp_path)
    assert bounds(first)[-1] > 0.0
    second = CertifyOptimality(time_budget=1e-9)  # which proves nothing by itself
    resume(tmp_path, second)
    assert second.history[:3] == first.history
    assert [record.epoch for record in second.history] == [0, 1, 2, 3, 4]
    assert bounds(second)[3] >= bounds(first)[-1]
    assert bounds(second) == sorted(bounds(second))


@IGNORE_ADVICE
def test_an_oracle_that_proves_nothing_keeps_the_stored_bound_exactly(tmp_path: Path) -> None:
    first = train_first(tmp_path)
    second = CertifyOptimality(oracle=VacuousOracle(), time_budget=0.5)
    resume(tmp_path, second)
    assert set(bounds(second)[3:]) == {bounds(first)[-1]}


@IGNORE_ADVICE
def test_training_is_the_same_as_without_interruption(tmp_path: Path) -> None:
    train_first(tmp_path)
    resumed, straight = Regression(seed=9), Regression()
    resume(tmp_path, CertifyOptimality(time_budget=0.05), module=resumed)
    make_trainer(tmp_path, max_epochs=5).fit(straight, make_loader())
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


@IGNORE_ADVICE
def test_between_certifications_a_resumed_fit_logs_the_stored_numbers(tmp_path: Path) -> None:
    first = train_first(tmp_path)
    second = CertifyOptimality(every_n_epochs=10, time_budget=0.05)
    resume(tmp_path, second, EarlyStopping("certificate/relative_gap", patience=10))  # which raises if the metric is missing
    assert [record.epoch for record in second.history] == [0, 1, 2, 4]
    assert second.history[:3] == first.history


@pytest.mark.parametrize("change", ["data", "order", "loss", "path_decay", "penalty", "architecture"])
@IGNORE_ADVICE
def test_a_bound_of_another_problem_is_dropped_with_a_warning(tmp_path: Path, change: str) -> None:
    train_first(tmp_path)
    inputs, targets = make_data()
    options: dict[str, dict[str, Any]] = {
        "data": {"data": (inputs, 2.0 * targets)},
        "order": {"data": (inputs.flip(0), targets.flip(0))},
        "loss": {},
        "path_decay": {"path_decay": 0.06},
        "penalty": {"path_decay": 0.05, "penalty": "l2_path"},
        "architecture": {},
    }
    module = Regression(seed=9, loss=nn.HuberLoss() if change == "loss" else None)
    if change == "architecture":  # with the same parameters
        module.net.add_module("1", nn.LeakyReLU(0.5))
    second = CertifyOptimality(oracle=VacuousOracle(), time_budget=0.5, **options[change])
    with pytest.warns(StrongDualWarning, match="for other data, loss, path penalty or architecture.*dropped"):
        resume(tmp_path, second, module=module)
    assert [record.epoch for record in second.history] == [3, 4]
    assert all(-1e-200 < bound <= 0.0 for bound in bounds(second))


@IGNORE_ADVICE
def test_a_bound_is_not_lost_by_a_fit_that_is_over_at_once(tmp_path: Path) -> None:
    first = train_first(tmp_path)
    second = CertifyOptimality(time_budget=0.5)
    resume(tmp_path, second, max_epochs=3)
    assert second.history == first.history
    assert second.state_dict()["bound"]["solver"]["dual_bound"] == bounds(first)[-1]


@IGNORE_ADVICE
def test_state_survives_a_chain_of_restarts_of_other_callbacks(tmp_path: Path) -> None:
    first = train_first(tmp_path)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)["callbacks"]
    assert list(state) == [first.state_key, *[key for key in state if key != first.state_key]]
    record = state[first.state_key]["history"][-1]
    assert CertificationRecord(**record) == first.history[-1]
    assert {type(value) for value in record.values()} == {int, float}
