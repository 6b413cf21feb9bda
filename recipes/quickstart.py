r"""Train five networks on real data under Lightning, and watch each being proven globally optimal.

The data ship with scikit-learn. Each network minimises ``loss + path_decay * sum of path penalties`` with ``PathAdamW`` on the
full batch; ``path_decay`` is a tenth (in the last run a fifth) of the strength from which on the zero network would be
optimal. ``CertifyOptimality`` bounds the optimum from below while training goes on, and ends it when the gap has closed.

===================  ==================================  =============================================
run                  data                                why it is certified
===================  ==================================  =============================================
two-layer ReLU       diabetes: bmi, bp, s5; all rows     branch and bound over a sphere in 3 dimensions
three-layer linear   diabetes, all ten columns           a spectral norm, exact
gated ReLU           diabetes, all ten columns           a spectral norm for each gate, exact
ReLU classifier      iris, petal length and width        branch and bound over a circle
wide two-layer ReLU  diabetes, all ten columns and rows  branch and bound over a sphere in 10 dimensions
===================  ==================================  =============================================

Run it with ``python -m torch_strongdual.recipes.quickstart``. It prints a table, writes ``record.json`` and
``certificates.png``, and exits with status 1 if a network is not certified.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_diabetes, load_iris
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from torch_strongdual.callbacks import CertifyOptimality
from torch_strongdual.certification import Certificate, CertificateStatus, max_path_decay
from torch_strongdual.nn import GatedReLU, ParallelNet, ParallelWeights
from torch_strongdual.optim import PathAdamW

from ._plot import Curve, plot_certificates
from ._run import config_from_args, environment, option, report_console, seed_everything, write_record

__all__ = ["Config", "main"]

_LIVE = 1e-6  # branches smaller than this, relative to the largest, count as dead
_FIRST_LAYER_SCALE = 0.1  # measured on the gated run: the final gap falls from about 1 % to 0.05 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Options of the recipe."""

    num_threads: int = option(1, "threads; networks of this size are slower with more")
    seed: int = option(0, "seed of all weights and gates")
    rtol: float = option(0.01, "relative gap up to which a network counts as globally optimal")
    target_gap: float = option(0.002, "relative gap at which training ends early")
    path_decay_fraction: float = option(0.1, "path decay relative to the strength that makes the zero network optimal")
    num_epochs: int = option(400, "epochs of each run, at most")
    every_n_epochs: int = option(10, "epochs between certificates")
    time_budget: float = option(2.0, "seconds a certificate may take")
    output: str = option("runs/quickstart", "folder for record.json and certificates.png")
    fast: bool = option(False, "the first four networks only, fewer certificates, and training ends when the gap is below rtol")


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A network, and what it is trained on."""

    name: str
    data: str
    layers: tuple[nn.Module, ...]
    num_branches: int
    loss: nn.Module
    inputs: Tensor
    targets: Tensor
    lr: float
    min_distinct_branches: int = 1
    path_decay_factor: float = 1.0  # this and the next two: relative to the options
    time_factor: float = 1.0
    interval_factor: int = 1
    is_long: bool = False


def experiments(*, fast: bool) -> Iterator[Experiment]:
    """Yield the runs; weights and gates are drawn when a run is asked for."""
    diabetes, iris = load_diabetes(), load_iris()
    columns = [diabetes.feature_names.index(name) for name in ("bmi", "bp", "s5")]
    inputs = _standardised(torch.from_numpy(diabetes.data))
    targets = _standardised(torch.from_numpy(diabetes.target)[:, None])
    yield Experiment(
        name="two-layer ReLU",
        data="diabetes, 3 columns",
        layers=(_linear(3, 1), nn.ReLU(), _linear(1, 1)),
        num_branches=64,
        loss=nn.MSELoss(),
        inputs=inputs[:, columns],
        targets=targets,
        lr=0.005,
        min_distinct_branches=3,
    )
    yield Experiment(
        name="three-layer linear",
        data="diabetes, 10 columns",
        layers=(_linear(10, 4), nn.Identity(), _linear(4, 4), nn.Identity(), _linear(4, 1)),
        num_branches=16,
        loss=nn.MSELoss(),
        inputs=inputs,
        targets=targets,
        lr=0.02,
    )
    yield Experiment(
        name="gated ReLU",
        data="diabetes, 10 columns",
        layers=(_linear(10, 1), GatedReLU(10), _linear(1, 1)),
        num_branches=16,
        loss=nn.MSELoss(),
        inputs=inputs,
        targets=targets,
        lr=0.02,
        min_distinct_branches=3,
    )
    yield Experiment(
        name="ReLU classifier",
        data="iris, 2 columns, 3 classes",
        layers=(_linear(2, 1), nn.ReLU(), _linear(1, 3)),
        num_branches=64,
        loss=nn.CrossEntropyLoss(),
        inputs=_standardised(torch.from_numpy(iris.data[:, 2:])),
        targets=torch.from_numpy(iris.target),
        lr=0.01,
        min_distinct_branches=3,
    )
    if fast:
        return
    yield Experiment(
        name="wide two-layer ReLU",
        data="diabetes, 10 columns",
        layers=(_linear(10, 1), nn.ReLU(), _linear(1, 1)),
        num_branches=64,
        loss=nn.MSELoss(),
        inputs=inputs,
        targets=targets,
        lr=0.02,
        min_distinct_branches=2,
        path_decay_factor=2.0,
        time_factor=45.0,
        interval_factor=10,
        is_long=True,
    )


def _linear(in_features: int, out_features: int) -> nn.Linear:
    return nn.Linear(in_features, out_features, bias=False)


def _standardised(columns: Tensor) -> Tensor:
    return ((columns - columns.mean(dim=0)) / columns.std(dim=0, correction=0)).float()


class Regularised(pl.LightningModule):
    """The loss comes from here, the path penalty from the optimizer."""

    def __init__(self, net: ParallelNet, loss: nn.Module, *, path_decay: float, lr: float, num_epochs: int) -> None:
        super().__init__()
        self.net, self.loss = net, loss
        self.path_decay, self.lr, self.num_epochs = path_decay, lr, num_epochs

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        return cast(Tensor, self.loss(self.net(inputs), targets))

    def configure_optimizers(self) -> Any:
        optimizer = PathAdamW(self.net.path_param_groups(self.path_decay), lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.num_epochs)]


class Bar(pl.Callback):
    """Moves one bar over all runs, and shows the gap so far."""

    def __init__(self, progress: Progress, task: TaskID, name: str) -> None:
        self.progress, self.task, self.name = progress, task, name

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        gap = float(trainer.callback_metrics.get("certificate/relative_gap", 1.0))
        self.progress.update(self.task, advance=1, description=f"{self.name}: gap {100 * gap:.2g} %")


def train(experiment: Experiment, config: Config, progress: Progress, task: TaskID) -> tuple[dict[str, Any], Curve]:
    """Train and certify one network; return what to record and what to plot."""
    start = time.perf_counter()
    net = ParallelNet(*experiment.layers, num_branches=experiment.num_branches)
    _shrink_first_layer(net)
    data = experiment.inputs, experiment.targets
    largest = max_path_decay(net, *data, loss=experiment.loss)
    path_decay = experiment.path_decay_factor * config.path_decay_fraction * largest.lower
    certify = CertifyOptimality(
        every_n_epochs=(2 if config.fast else experiment.interval_factor) * config.every_n_epochs,
        rtol=config.rtol if config.fast or experiment.is_long else min(config.rtol, config.target_gap),
        time_budget=experiment.time_factor * config.time_budget,
        stop_when_certified=True,
    )
    trainer = pl.Trainer(
        max_epochs=config.num_epochs,
        callbacks=[certify, Bar(progress, task, experiment.name)],
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    module = Regularised(net, experiment.loss, path_decay=path_decay, lr=experiment.lr, num_epochs=config.num_epochs)
    trainer.fit(module, DataLoader(TensorDataset(*data), batch_size=len(experiment.inputs)))
    certificate = certify.last_certificate
    if certificate is None:
        raise RuntimeError(f"The last certification of {experiment.name!r} failed: {certify.last_error}")
    live, distinct = count_branches(net, experiment.inputs)
    result = {
        "name": experiment.name,
        "data": experiment.data,
        "path_decay": path_decay,
        "max_path_decay": [largest.lower, largest.upper],
        **_numbers(certificate, config.rtol),
        "live_branches": live,
        "distinct_branches": distinct,
        "min_distinct_branches": experiment.min_distinct_branches,
        "num_epochs": trainer.current_epoch,
        "num_certificates": len(certify.history),
        "certification_seconds": sum(record.seconds for record in certify.history),
        "seconds": time.perf_counter() - start,
        "history": [
            {
                "epoch": record.epoch,
                "primal_value": record.primal_value,
                "dual_bound": record.dual_bound,
                "seconds": record.seconds,
            }
            for record in certify.history
        ],
    }
    curve = Curve(
        title=f"{experiment.name} ({experiment.data}){_within(certificate.scope.name)}",
        epochs=[record.epoch + 1 for record in certify.history],
        primal_values=[record.primal_value for record in certify.history],
        dual_bounds=[record.dual_bound for record in certify.history],
        relative_gap=certificate.relative_gap,
    )
    return result, curve


@torch.no_grad()
def _shrink_first_layer(net: ParallelNet) -> None:
    """Start small: a small first layer turns towards the data before the penalty removes the branch."""
    next(net.parameters()).mul_(_FIRST_LAYER_SCALE)


def _numbers(certificate: Certificate, rtol: float) -> dict[str, Any]:
    """What a certificate says, judged by ``rtol``: training may have aimed at a smaller gap."""
    is_certified = certificate.relative_gap <= rtol
    return {
        "is_certified": is_certified,
        "primal_value": certificate.primal_value,
        "dual_bound": certificate.dual_bound,
        "relative_gap": certificate.relative_gap,
        "status": CertificateStatus.CERTIFIED.name if is_certified else certificate.status.name,
        "scope": certificate.scope.name,
        "oracle": certificate.evidence.get("oracle", ""),
    }


@torch.no_grad()
def count_branches(net: ParallelNet, inputs: Tensor) -> tuple[int, int]:
    """Return the number of live branches, and of those that compute different functions of the data (up to a factor)."""
    sizes = ParallelWeights.from_module(net).product_norms()
    live = (sizes > _LIVE * sizes.max()).nonzero().flatten().tolist()
    functions: list[Tensor] = []
    for index in live:
        outputs = net.branch(index)(inputs).flatten()
        direction = outputs / torch.linalg.vector_norm(outputs)
        if all(float(direction @ other) < 0.99 for other in functions):
            functions.append(direction)
    return len(live), len(functions)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's hints about hardware and data loaders out of the output."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers", category=UserWarning)
            warnings.filterwarnings("ignore", module=r"lightning\.", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _within(scope: str) -> str:
    """What a bound leaves out: that of a gated network speaks of networks with the same gates."""
    return ", among nets with its gates" if scope == "GATED" else ""


def _table(results: Sequence[dict[str, Any]], rtol: float) -> Table:
    table = Table(title=f"Distance from the global optimum, proven (certified: at most {100 * rtol:g} %)")
    table.add_column("network")
    for heading in ("objective", "lower\nbound", "gap"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for heading in ("seconds", "live\nbranches", "distinct"):
        table.add_column(heading, justify="right")
    table.add_column("bound by")
    for result in results:
        table.add_row(
            result["name"] + _within(result["scope"]),
            f"{result['primal_value']:.5f}",
            f"{result['dual_bound']:.5f}",
            f"{100 * result['relative_gap']:.2g} %",
            "[green]certified[/]" if result["is_certified"] else "[red]open[/]",
            f"{result['seconds']:.1f}",
            str(result["live_branches"]),
            str(result["distinct_branches"]),
            result["oracle"],
        )
    return table


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the recipe.

    Args:
        argv: Options; those of the process if ``None``.

    Returns:
        The record that is written as JSON; ``record["is_certified"]`` says whether all runs are.
    """
    config = config_from_args(Config, argv, name="quickstart", description="Train five networks and prove them optimal.")
    console = report_console()
    start = time.perf_counter()
    torch.set_num_threads(config.num_threads)
    seed_everything(config.seed)
    results, curves = [], []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} epochs"),
        TimeElapsedColumn(),
    )
    with _quiet_lightning(), Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=(4 if config.fast else 5) * config.num_epochs)
        for number, experiment in enumerate(experiments(fast=config.fast), start=1):
            result, curve = train(experiment, config, progress, task)
            progress.update(task, completed=number * config.num_epochs)
            results.append(result)
            curves.append(curve)
    record = {
        "recipe": "quickstart",
        "config": config,
        "environment": environment(),
        "results": results,
        "is_certified": all(result["is_certified"] for result in results),
        "is_nontrivial": all(result["distinct_branches"] >= result["min_distinct_branches"] for result in results),
        "seconds": time.perf_counter() - start,
    }
    output = Path(config.output)
    write_record(output / "record.json", record)
    plot_certificates(curves, output / "certificates.png", rtol=config.rtol)
    console.print(_table(results, config.rtol))
    written = f"{output / 'record.json'} and {output / 'certificates.png'}"
    console.print(f"Took {record['seconds']:.0f} s. Wrote {written}.", soft_wrap=True)
    return record


if __name__ == "__main__":
    outcome = main()
    sys.exit(0 if outcome["is_certified"] and outcome["is_nontrivial"] else 1)
