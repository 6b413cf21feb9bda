"""Two processes, gloo, on the CPU: both grow the same branches, and training goes on as in one process with all data."""

from __future__ import annotations

import copy
import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from torch_strongdual.callbacks import CertifyOptimality, GrowBranches
from torch_strongdual.nn import ParallelNet
from torch_strongdual.optim import PathSGD

from ..contracts.lightning_regression import IGNORE_ADVICE, NUM_SAMPLES, PATH_DECAY, Regression, make_data, make_trainer

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded.*:DeprecationWarning"),  # forking, from Python 3.12 on
]

_EPOCHS = 8


def data() -> tuple[Tensor, Tensor]:
    inputs, targets = make_data()
    return inputs.double(), targets.double()


def objective(net: ParallelNet) -> float:
    inputs, targets = data()
    return (nn.functional.mse_loss(net(inputs), targets) + PATH_DECAY * net.path_penalty()).item()


class Notes(pl.Callback):
    """Writes what each rank holds before and after the growth of each epoch."""

    def __init__(self, folder: Path, callback: GrowBranches) -> None:
        self.folder, self.callback, self.epochs = folder, callback, []  # type: ignore[var-annotated]
        self.before: dict[str, Any] = {}

    def note(self, trainer: pl.Trainer, net: ParallelNet) -> dict[str, Any]:
        states = [copy.deepcopy(trainer.optimizers[0].state[weight]) for weight in net.branch_weights()]
        moments = [state["momentum_buffer"] for state in states]
        weights = [weight.detach().clone() for weight in net.branch_weights()]
        return {"weights": weights, "moments": moments, "objective": objective(net)}


class Before(Notes):
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Regression)
        self.before = self.note(trainer, pl_module.net)


class After(Notes):
    def __init__(self, folder: Path, callback: GrowBranches, earlier: Notes) -> None:
        super().__init__(folder, callback)
        self.earlier = earlier

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Regression)
        self.epochs.append((self.earlier.before, self.note(trainer, pl_module.net)))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        growths = [record.epoch for record in self.callback.history]
        torch.save({"epochs": self.epochs, "growths": growths}, self.folder / f"rank{trainer.global_rank}.pt")


def fit(folder: Path, batch_size: int, options: dict[str, Any]) -> None:
    """Fit in float64, and write notes."""
    folder.mkdir(exist_ok=True)
    grow = GrowBranches(max_branches=6, max_added=2)
    before = Before(folder, grow)
    certify = CertifyOptimality(every_n_epochs=3, rtol=1e-6)
    trainer = make_trainer(folder, certify, before, grow, After(folder, grow, before), max_epochs=_EPOCHS, **options)
    module = Regression(
        num_branches=1,
        make_optimizer=lambda net: PathSGD(net.path_param_groups(PATH_DECAY), lr=0.02, momentum=0.5),
    ).double()
    trainer.fit(module, DataLoader(TensorDataset(*data()), batch_size=batch_size, shuffle=False))


def notes(folder: Path, rank: int) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(folder / f"rank{rank}.pt")
    return loaded


def on_two_ranks(target: Callable[..., object], *arguments: object) -> list[int | None]:
    """Run ``target`` in two forked processes, as a launcher of scripts starts them; returns their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_as_rank, args=(rank, port, target, arguments)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()  # if it hangs; nothing otherwise
        process.join()
    return [process.exitcode for process in processes]


def _as_rank(rank: int, port: int, target: Callable[..., object], arguments: Sequence[object]) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    target(*arguments)


@IGNORE_ADVICE
def test_both_ranks_grow_alike_and_train_on_as_one_process_does(tmp_path: Path) -> None:
    assert on_two_ranks(fit, tmp_path / "two", NUM_SAMPLES // 2, {"strategy": "ddp", "devices": 2}) == [0, 0]
    fit(tmp_path / "one", NUM_SAMPLES, {})
    first, second, alone = notes(tmp_path / "two", 0), notes(tmp_path / "two", 1), notes(tmp_path / "one", 0)
    assert first["growths"] == second["growths"] == alone["growths"]
    assert len(first["growths"]) >= 2
    for epoch, (before, after) in enumerate(first["epochs"]):
        for name in ("weights", "moments"):
            assert all(map(torch.equal, after[name], second["epochs"][epoch][1][name]))
            for mine, of_all in zip(after[name], alone["epochs"][epoch][1][name], strict=True):
                torch.testing.assert_close(mine, of_all, rtol=1e-9, atol=1e-9)
        if epoch in first["growths"]:
            assert after["objective"] < before["objective"]
            assert after["weights"][0].shape[0] > before["weights"][0].shape[0]
    last_growth = first["growths"][-1]
    assert last_growth < _EPOCHS - 1
    moved = first["epochs"][-1][1]["weights"][0] - first["epochs"][last_growth][1]["weights"][0]
    assert bool((moved != 0).flatten(1).any(dim=1).all())  # new branches are trained too


class FailsOnRankZero(GrowBranches):
    def _plan(self, trainer: pl.Trainer, net: ParallelNet) -> None:
        raise ArithmeticError("made to fail")


def fit_that_fails(folder: Path) -> None:
    trainer = make_trainer(folder, CertifyOptimality(), FailsOnRankZero(4), strategy="ddp", devices=2)
    message = "made to fail" if os.environ["LOCAL_RANK"] == "0" else "Rank 0 could not decide.*ArithmeticError: made to fail"
    with pytest.raises((ArithmeticError, RuntimeError), match=message):
        trainer.fit(Regression(), DataLoader(TensorDataset(*make_data()), batch_size=6))


@IGNORE_ADVICE
def test_what_fails_on_rank_zero_ends_all_ranks(tmp_path: Path) -> None:
    assert on_two_ranks(fit_that_fails, tmp_path) == [0, 0]
