r"""Tuning ``path_decay`` on validation data by its exact gradient, against a grid search.

The strength of the penalty is usually found by training at every value of a grid. At a certified global optimum the network is
a function of the strength, and ``differentiable_optimum`` differentiates it: one solution gives the validation loss *and* its
slope, and a few steps of a secant method on the slope find where it vanishes. Two-layer ReLU networks on three columns of the
diabetes data (one output, squared loss) or two of the wine data (three classes, cross-entropy); one part of the rows is trained
on, one validates, one is for the test at the end.

The validation loss need not be convex in the strength, so what is found is a local minimum; the grid shows whether it is more.
The slope at the best strength is compared with the difference of two optima trained anew on both sides of it.

Run it with ``python -m torch_strongdual.recipes.tune_path_decay [--data wine]``. It prints a table, writes ``record.json`` and
``validation.png``, and exits with status 1 if an optimum is not certified.

References:
    Bengio, "Gradient-Based Optimization of Hyperparameters", Neural Computation 2000.
    Agrawal et al., "Differentiable Convex Optimization Layers", NeurIPS 2019. https://arxiv.org/abs/1910.12430
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from sklearn.datasets import load_diabetes, load_wine
from torch import Tensor, nn

from torch_strongdual.certification import (
    OptimizationResult,
    differentiable_optimum,
    max_path_decay,
    optimize_to_certificate,
    path_decay_path,
)
from torch_strongdual.errors import InvalidInputError, NotDifferentiableError
from torch_strongdual.nn import ParallelNet

from ._plot import DUAL, PRIMAL, new_figure
from ._run import config_from_args, environment, option, report_console, seed_everything, write_record

__all__ = ["Config", "Evaluation", "Split", "main", "tune"]

_STRIDE = 3.0  # factor of the strength while no step has passed the minimum
_FLAT = 1e-3  # slope per factor of e, relative to the loss, at which to stop
_NARROW = 1.05  # factor between strengths on both sides of the minimum at which to stop
_ASIDE = 1.01  # factor by which a strength is moved where the optimum has a left and a right derivative
_APART = 3e-4  # relative distance of the two strengths whose optima check a slope


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Options of the recipe."""

    num_threads: int = option(1, "threads; problems of this size are slower with more")
    seed: int = option(0, "seed of weights and split")
    data: str = option("diabetes", "diabetes (one output, squared loss) or wine (three classes, cross-entropy)")
    num_samples: int = option(0, "samples trained on, 0 for 200 or 90; the others are for validation and test, half each")
    start: float = option(0.5, "path decay to start from, relative to the strength that makes the zero network optimal")
    num_steps: int = option(8, "optima that the tuning may solve, at most")
    num_grid: int = option(12, "optima on the grid")
    smallest: float = option(0.02, "smallest path decay on the grid, relative; the largest is 0.8")
    rtol: float = option(1e-3, "relative gap to prove")
    time_budget: float = option(60.0, "seconds for each certified optimum, at most")
    output: str = option("runs/tune_path_decay", "folder for record.json and validation.png")
    fast: bool = option(False, "fewer samples, four steps and a grid of four")


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Inputs and targets of three sets of rows, and the loss and number of outputs that they are for."""

    training: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    loss: nn.Module
    num_outputs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What was found at one strength.

    Args:
        path_decay: The strength.
        validation_loss: Loss of the optimal network on the validation set.
        slope: Its derivative in the logarithm of the strength; NaN if not asked for.
        test_loss: The same loss on the test set.
        relative_gap: Proven, of the training objective.
        is_certified: Whether it is small enough.
        num_branches: Of the optimal network.
    """

    path_decay: float
    validation_loss: float
    slope: float
    test_loss: float
    relative_gap: float
    is_certified: bool
    num_branches: int


def _diabetes() -> tuple[Tensor, Tensor]:
    table = load_diabetes()
    columns = [table.feature_names.index(name) for name in ("bmi", "bp", "s5")]
    return torch.from_numpy(table.data[:, columns]), torch.from_numpy(table.target)[:, None]


def _wine() -> tuple[Tensor, Tensor]:
    table = load_wine()
    columns = [table.feature_names.index(name) for name in ("alcohol", "malic_acid")]
    return torch.from_numpy(table.data[:, columns]), torch.from_numpy(table.target).long()


def _split(config: Config) -> Split:
    inputs, targets = _diabetes() if config.data == "diabetes" else _wine()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(config.seed))
    middle = (config.num_samples + len(inputs)) // 2
    rows = order[: config.num_samples], order[config.num_samples : middle], order[middle:]
    for table in (inputs, targets) if targets.is_floating_point() else (inputs,):  # standardised by what is trained on
        table.sub_(table[rows[0]].mean(dim=0)).div_(table[rows[0]].std(dim=0, correction=0))
    training, validation, test = ((inputs[part], targets[part]) for part in rows)
    loss, num_outputs = (nn.MSELoss(), 1) if config.data == "diabetes" else (nn.CrossEntropyLoss(), 3)
    return Split(training=training, validation=validation, test=test, loss=loss, num_outputs=num_outputs)


def _validation_loss(result: OptimizationResult, split: Split, path_decay: Tensor) -> Tensor:
    """Of the exact optimum near a certified network; differentiable in ``path_decay``."""
    optimum = differentiable_optimum(result.net, *split.training, loss=split.loss, path_decay=path_decay)
    loss: Tensor = split.loss(optimum(split.validation[0]), split.validation[1])
    return loss


def _evaluation(result: OptimizationResult, split: Split, *, with_slope: bool) -> Evaluation:
    """Validation loss of a certified network; its slope by differentiating the optimum."""
    certificate = result.certificate
    inputs, targets = split.validation
    loss, slope = split.loss(result.net(inputs), targets), math.nan
    if with_slope:
        path_decay = torch.tensor(certificate.path_decay, dtype=torch.float64, requires_grad=True)
        loss = _validation_loss(result, split, path_decay)
        (derivative,) = torch.autograd.grad(loss, path_decay)
        slope = derivative.item() * certificate.path_decay
    return Evaluation(
        path_decay=certificate.path_decay,
        validation_loss=loss.item(),
        slope=slope,
        test_loss=split.loss(result.net(split.test[0]), split.test[1]).item(),
        relative_gap=certificate.relative_gap,
        is_certified=certificate.is_certified,
        num_branches=result.net.num_branches,
    )


def _difference(solve: Callable[[float], OptimizationResult], split: Split, path_decay: float) -> float:
    """Slope in the logarithm of the strength, from two optima trained anew."""
    strengths = [path_decay * (1.0 + sign * 0.5 * _APART) for sign in (-1.0, 1.0)]
    weaker, stronger = (
        _validation_loss(solve(strength), split, torch.tensor(strength, dtype=torch.float64)).item() for strength in strengths
    )
    return (stronger - weaker) / _APART


def tune(evaluate: Callable[[float], Evaluation], start: float, num_steps: int) -> list[Evaluation]:
    """Follow the slope downhill; once it has changed its sign, a safeguarded secant method finds where it vanishes.

    Args:
        evaluate: Gives loss and slope at a strength.
        start: First strength.
        num_steps: Calls, at most.

    Returns:
        All evaluations, in order.
    """
    done: list[Evaluation] = []
    weak: Evaluation | None = None  # the best known place where a stronger penalty helps, and where a weaker one does
    strong: Evaluation | None = None
    path_decay = start
    while len(done) < num_steps:
        done.append(here := evaluate(path_decay))
        if abs(here.slope) <= _FLAT * here.validation_loss:
            break
        weak, strong = (here, strong) if here.slope < 0 else (weak, here)
        if weak is None or strong is None:
            path_decay *= _STRIDE if here.slope < 0 else 1.0 / _STRIDE
            continue
        if strong.path_decay <= _NARROW * weak.path_decay:
            break
        share = min(max(weak.slope / (weak.slope - strong.slope), 0.1), 0.9)
        path_decay = weak.path_decay * (strong.path_decay / weak.path_decay) ** share
    return done


def _best(evaluations: Sequence[Evaluation]) -> Evaluation:
    return min(evaluations, key=lambda evaluation: evaluation.validation_loss)


def _table(tuned: Sequence[Evaluation], grid: Sequence[Evaluation]) -> Table:
    table = Table(title="Validation loss at certified optima")
    for heading in ("", "path_decay", "validation loss", "slope\nper factor of e", "test loss", "certified\ngap", "branches"):
        table.add_column(heading, justify="right")
    for name, evaluations in (("tuned", tuned), ("grid", grid)):
        for index, e in enumerate(evaluations):
            slope = "" if math.isnan(e.slope) else f"{e.slope:+.4f}"
            numbers = f"{e.path_decay:.4g}", f"{e.validation_loss:.4f}", slope, f"{e.test_loss:.4f}"
            table.add_row(name if index == 0 else "", *numbers, f"{100 * e.relative_gap:.2g} %", str(e.num_branches))
        table.add_section()
    return table


def _plot(tuned: Sequence[Evaluation], grid: Sequence[Evaluation], path: Path, loss: nn.Module) -> None:
    figure = new_figure(7.5, 4.6)
    axes = figure.subplots()
    ordered = sorted(grid, key=lambda e: e.path_decay)
    axes.plot(
        [e.path_decay for e in ordered],
        [e.validation_loss for e in ordered],
        "o-",
        color=DUAL,
        markersize=4,
        label=f"grid search, {len(grid)} optima",
    )
    for index, e in enumerate(tuned):
        reach = np.array([-0.25, 0.25])
        label = f"tuned by the gradient, {len(tuned)} optima with slopes" if index == 0 else None
        axes.plot(e.path_decay * np.exp(reach), e.validation_loss + e.slope * reach, color=PRIMAL, linewidth=1.5)
        axes.plot(e.path_decay, e.validation_loss, "s", color=PRIMAL, markersize=5, label=label)
        if index < 4:  # later ones lie on top of each other
            axes.annotate(str(index + 1), (e.path_decay, e.validation_loss), (5, 7), textcoords="offset points", fontsize=9)
    axes.set_xscale("log")
    axes.set_xlabel("path_decay")
    axes.set_ylabel(f"validation loss ({'mean squared error' if isinstance(loss, nn.MSELoss) else 'cross-entropy'})")
    axes.set_title("Validation loss of the global optimum, and its exact slope", fontsize=11)
    axes.grid(alpha=0.25, which="both", linewidth=0.5)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the recipe.

    Args:
        argv: Options; those of the process if ``None``.

    Returns:
        The record that is written as JSON; ``record["is_certified"]`` says whether all optima are.
    """
    config = _completed(config_from_args(Config, argv, name="tune_path_decay", description="Tune path_decay by its gradient."))
    console = report_console()
    torch.set_num_threads(config.num_threads)
    seed_everything(config.seed)
    split = _split(config)
    problem: dict[str, Any] = {"loss": split.loss, "rtol": config.rtol, "time_budget": config.time_budget}
    layers = nn.Linear(split.training[0].shape[1], 1), nn.ReLU(), nn.Linear(1, split.num_outputs)
    net = ParallelNet(*layers, num_branches=1, dtype=torch.float64)
    largest = max_path_decay(net, *split.training, loss=split.loss).lower
    nets = [net]

    def solve(path_decay: float) -> OptimizationResult:
        result = optimize_to_certificate(nets[-1], *split.training, path_decay=path_decay, **problem)
        nets.append(result.net)  # where the next one starts
        return result

    def evaluate(path_decay: float) -> Evaluation:
        for _ in range(3):
            try:
                return _evaluation(solve(path_decay), split, with_slope=True)
            except NotDifferentiableError:  # at an isolated strength, where patterns change
                path_decay *= _ASIDE
        return _evaluation(solve(path_decay), split, with_slope=True)

    start = time.process_time()
    tuned = tune(evaluate, config.start * largest, config.num_steps)
    tuned_seconds = time.process_time() - start
    fractions = np.geomspace(0.8, config.smallest, config.num_grid).tolist()
    rows = path_decay_path(net, *split.training, fractions=fractions, **problem).rows
    grid = [_evaluation(row.result, split, with_slope=False) for row in rows]
    grid_seconds = time.process_time() - start - tuned_seconds
    best = _best(tuned)
    difference = _difference(solve, split, best.path_decay)
    record = {
        "recipe": "tune_path_decay",
        "config": config,
        "environment": environment(),
        "max_path_decay": largest,
        "tuned": tuned,
        "grid": grid,
        "best_tuned": best,
        "best_on_grid": _best(grid),
        "slope_by_differences": difference,
        "is_certified": all(e.is_certified for e in [*tuned, *grid]),
        "tuned_cpu_seconds": tuned_seconds,
        "grid_cpu_seconds": grid_seconds,
    }
    output = Path(config.output)
    write_record(output / "record.json", record)
    _plot(tuned, grid, output / "validation.png", split.loss)
    console.print(_table(tuned, grid))
    for name, evaluations in (("gradient", tuned), ("grid", grid)):
        found, number = _best(evaluations), len(evaluations)
        console.print(
            f"By {name}: validation loss {found.validation_loss:.4f} at {found.path_decay:.4g}, from {number} optima."
        )
    console.print(f"Slope at {best.path_decay:.4g}: {best.slope:+.6f}; by differences of optima: {difference:+.6f}.")
    console.print(f"Wrote {output / 'record.json'} and {output / 'validation.png'}.", soft_wrap=True)
    return record


def _completed(config: Config) -> Config:
    """What the options leave open."""
    numbers = {"diabetes": 200, "wine": 90}
    if config.data not in numbers:
        raise InvalidInputError(f"`data` is {config.data!r}; expected one of {', '.join(numbers)}.")
    config = dataclasses.replace(config, num_samples=config.num_samples or numbers[config.data])
    if config.fast:
        config = dataclasses.replace(config, num_samples=min(config.num_samples, 40), num_steps=4, num_grid=4, smallest=0.1)
    return config


if __name__ == "__main__":
    sys.exit(0 if main()["is_certified"] else 1)
