r"""How many of 500 branches survive at the certified optimum.

The path penalty is a sum of norms over branches, so it removes whole branches. For several strengths, a two-layer ReLU network
of 500 branches is trained by ``PathAdamW`` on three columns of the diabetes data (all rows), then brought to a certified
optimum by ``optimize_to_certificate``, and at last reduced by ``reduce_branches``, which keeps the outputs on the data and
never raises the penalty. Optimal networks need at most ``num_samples * out_features + 1`` branches; it takes far fewer.

Run it with ``python -m torch_strongdual.recipes.sparse_network``. It prints a table, writes ``record.json`` and
``branches.png``, and exits with status 1 if a network is not certified.

References:
    Wang, Ergen, Pilanci, "Parallel Deep Neural Networks Have Zero Duality Gap", ICLR 2023. https://arxiv.org/abs/2110.06482
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from torch_strongdual.certification import certify, max_path_decay, optimize_to_certificate, reduce_branches
from torch_strongdual.nn import ParallelNet
from torch_strongdual.optim import PathAdamW

from ._plot import DUAL, PRIMAL, new_figure
from ._run import config_from_args, environment, option, report_console, seed_everything, write_record

__all__ = ["Config", "main"]

_STAGES = (
    ("num_branches_trained", "after PathAdamW"),
    ("num_branches_certified", "at the certified optimum"),
    ("num_branches_reduced", "after reduce_branches"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Options of the recipe."""

    num_threads: int = option(1, "threads; networks of this size are slower with more")
    seed: int = option(0, "seed of the weights")
    num_branches: int = option(500, "branches of each network at the start")
    fractions: str = option("0.5,0.2,0.1,0.05", "path decays relative to the strength that makes the zero network optimal")
    num_steps: int = option(1500, "full-batch steps of PathAdamW")
    lr: float = option(0.01, "learning rate, annealed to zero along a cosine")
    rtol: float = option(1e-3, "relative gap to prove")
    time_budget: float = option(60.0, "seconds for each certified optimum, at most")
    output: str = option("runs/sparse_network", "folder for record.json and branches.png")
    fast: bool = option(False, "two strengths, fewer steps and a tolerance of one percent")


def _data() -> tuple[Tensor, Tensor]:
    diabetes = load_diabetes()
    columns = [diabetes.feature_names.index(name) for name in ("bmi", "bp", "s5")]
    tables = torch.from_numpy(diabetes.data[:, columns]), torch.from_numpy(diabetes.target)[:, None]
    inputs, targets = ((table - table.mean(dim=0)) / table.std(dim=0, correction=0) for table in tables)
    return inputs, targets


def train(net: ParallelNet, inputs: Tensor, targets: Tensor, *, path_decay: float, config: Config) -> None:
    """Full-batch ``PathAdamW``, in place."""
    loss = nn.MSELoss()
    optimizer = PathAdamW(net.path_param_groups(path_decay), lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.num_steps)
    for _ in range(config.num_steps):
        optimizer.zero_grad()
        loss(net(inputs), targets).backward()
        optimizer.step()
        schedule.step()


def solve(fraction: float, largest: float, config: Config) -> dict[str, Any]:
    """Train, certify and reduce one network; return what to record."""
    start = time.perf_counter()
    inputs, targets = _data()
    seed_everything(config.seed)
    layers = nn.Linear(inputs.shape[1], 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)
    net = ParallelNet(*layers, num_branches=config.num_branches, dtype=torch.float64)
    problem: dict[str, Any] = {"loss": nn.MSELoss(), "path_decay": fraction * largest, "rtol": config.rtol}
    train(net, inputs, targets, path_decay=problem["path_decay"], config=config)
    trained = certify(net, inputs, targets, **problem)
    net.prune_()
    result = optimize_to_certificate(net, inputs, targets, **problem, time_budget=config.time_budget)
    reduced = reduce_branches(result.net, inputs)
    final = certify(reduced, inputs, targets, **problem)
    return {
        "fraction": fraction,
        "path_decay": problem["path_decay"],
        "num_branches": config.num_branches,
        "num_branches_trained": net.num_branches,
        "trained_relative_gap": trained.relative_gap,
        "num_branches_certified": result.net.num_branches,
        "is_certified": result.certificate.is_certified,
        "primal_value": result.certificate.primal_value,
        "dual_bound": result.certificate.dual_bound,
        "relative_gap": result.certificate.relative_gap,
        "num_branches_reduced": reduced.num_branches,
        "reduced_primal_value": final.primal_value,
        "most_needed": inputs.shape[0] * targets.shape[1] + 1,
        "seconds": time.perf_counter() - start,
    }


def _table(results: Sequence[dict[str, Any]]) -> Table:
    first = results[0]
    caption = f"The theory needs at most {first['most_needed']} branches."
    table = Table(title=f"Survivors of {first['num_branches']} branches", caption=caption)
    for heading in (
        "path_decay\n/ largest useful",
        "gap after\nPathAdamW",
        "certified\ngap",
        *(f"branches\n{title}" for _, title in _STAGES),
        "seconds",
    ):
        table.add_column(heading, justify="right")
    for result in results:
        gaps = [f"{100 * result[name]:.2g} %" for name in ("trained_relative_gap", "relative_gap")]
        counts = [str(result[name]) for name, _ in _STAGES]
        table.add_row(f"{result['fraction']:g}", *gaps, *counts, f"{result['seconds']:.1f}")
    return table


def _plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    figure = new_figure(7.5, 4.4)
    axes = figure.subplots()
    positions = range(len(results))
    for shift, colour, (name, title) in zip((-0.27, 0.0, 0.27), ("0.65", PRIMAL, DUAL), _STAGES, strict=True):
        bars = axes.bar([p + shift for p in positions], [r[name] for r in results], width=0.25, color=colour, label=title)
        axes.bar_label(bars, fontsize=9)
    axes.axhline(results[0]["num_branches"], color="0.4", linewidth=0.8, linestyle="--")
    axes.annotate(
        f"{results[0]['num_branches']} at the start",
        (0.0, results[0]["num_branches"]),
        (0, 4),
        textcoords="offset points",
        xycoords=("axes fraction", "data"),
        fontsize=9,
    )
    axes.set_yscale("log")
    axes.set_ylim(0.8, 3.0 * results[0]["num_branches"])
    axes.set_xticks(list(positions), [f"{result['fraction']:g}" for result in results])
    axes.set_xlabel("path_decay relative to the largest useful one")
    axes.set_ylabel("branches")
    axes.set_title("Branches that survive, diabetes data, 442 samples", fontsize=11)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the recipe.

    Args:
        argv: Options; those of the process if ``None``.

    Returns:
        The record that is written as JSON; ``record["is_certified"]`` says whether all networks are.
    """
    config = config_from_args(Config, argv, name="sparse_network", description="Count branches at the certified optimum.")
    if config.fast:
        config = dataclasses.replace(
            config, fractions="0.5,0.2", num_steps=min(config.num_steps, 300), rtol=max(config.rtol, 1e-2)
        )
    console = report_console()
    start = time.perf_counter()
    torch.set_num_threads(config.num_threads)
    inputs, targets = _data()
    layers = nn.Linear(inputs.shape[1], 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)
    largest = max_path_decay(ParallelNet(*layers, num_branches=1), inputs, targets, loss=nn.MSELoss()).lower
    fractions = sorted((float(fraction) for fraction in config.fractions.split(",")), reverse=True)
    results = [solve(fraction, largest, config) for fraction in track(fractions, "training", console=console)]
    record = {
        "recipe": "sparse_network",
        "config": config,
        "environment": environment(),
        "max_path_decay": largest,
        "results": results,
        "is_certified": all(result["is_certified"] for result in results),
        "seconds": time.perf_counter() - start,
    }
    output = Path(config.output)
    write_record(output / "record.json", record)
    _plot(results, output / "branches.png")
    console.print(_table(results))
    written = f"{output / 'record.json'} and {output / 'branches.png'}"
    console.print(f"Took {record['seconds']:.0f} s. Wrote {written}.", soft_wrap=True)
    return record


if __name__ == "__main__":
    sys.exit(0 if main()["is_certified"] else 1)
