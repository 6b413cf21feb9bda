r"""Prove networks on a three-class spiral globally optimal, with 15 to 150 samples.

The spiral in the plane is the example of a certificate by Burer-Monteiro factorisation (Sahiner et al., ICLR 2024), which for
ReLU networks bounds the distance from the optimum at stationary points. Here ``optimize_to_certificate`` trains two-layer ReLU
networks with a first-layer bias and three outputs until they are proven optimal to ``rtol``. The data have rank three, the bias
included, so that a branch and bound over a sphere in three dimensions gives the dual norm for matrices of three columns.

Run it with ``python -m torch_strongdual.recipes.spiral_certificate``. It prints a table, writes ``record.json`` and
``spiral.png``, and exits with status 1 if a network is not certified; the table then says what keeps its gap open.

References:
    Sahiner, Ergen, Ozturkler, Pauly, Mardani, Pilanci, "Scaling Convex Neural Networks with Burer-Monteiro Factorization",
    ICLR 2024.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from torch_strongdual.certification import OptimizationResult, max_path_decay, optimize_to_certificate, reduce_branches
from torch_strongdual.nn import ParallelNet

from ._plot import DUAL, PRIMAL, new_figure
from ._run import config_from_args, environment, option, report_console, seed_everything, write_record

__all__ = ["Config", "main", "spiral"]

_CLASS_COLOURS = ("#c1440e", "#1f5a92", "#5c8a3a")
_LOSSES: dict[str, type[nn.Module]] = {"cross_entropy": nn.CrossEntropyLoss, "squared": nn.MSELoss}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Options of the recipe."""

    num_threads: int = option(1, "threads; networks of this size are slower with more")
    seed: int = option(0, "seed of the noise in the angles")
    sizes: str = option("15,30,60,90,120,150", "numbers of samples, multiples of three")
    noise: float = option(0.2, "standard deviation of the angles, in radians", may_be_zero=True)
    loss: str = option("cross_entropy", "cross_entropy or squared")
    rtol: float = option(0.01, "relative gap to prove")
    path_decay_fraction: float = option(0.05, "path decay relative to the strength that makes the zero network optimal")
    time_budget: float = option(120.0, "seconds for each network, at most")
    output: str = option("runs/spiral_certificate", "folder for record.json and spiral.png")
    fast: bool = option(False, "two sizes and a stronger penalty")


def spiral(num_samples: int, *, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return points in the unit disc, float64, and their arm: 0, 1 or 2.

    Args:
        num_samples: A multiple of three.
        noise: Standard deviation of the angles.
        seed: Of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    length = num_samples // 3
    radius = torch.linspace(0.0, 1.0, length + 1, dtype=torch.float64)[1:].repeat(3)
    arms = torch.arange(3).repeat_interleave(length)
    angle = 4.0 * (arms + radius) + noise * torch.randn(3 * length, generator=generator, dtype=torch.float64)
    return radius[:, None] * torch.stack([angle.sin(), angle.cos()], dim=1), arms


def solve(num_samples: int, config: Config) -> tuple[dict[str, Any], ParallelNet]:
    """Train and certify one network; return what to record, and the network."""
    inputs, arms = spiral(num_samples, noise=config.noise, seed=config.seed)
    loss = _LOSSES[config.loss]()
    targets = arms if config.loss == "cross_entropy" else nn.functional.one_hot(arms, 3).to(torch.float64)
    layers = nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 3, bias=False)
    net = ParallelNet(*layers, num_branches=1, dtype=torch.float64)
    path_decay = config.path_decay_fraction * max_path_decay(net, inputs, targets, loss=loss).lower
    start, processor = time.perf_counter(), time.process_time()
    options: dict[str, Any] = {"rtol": config.rtol, "time_budget": config.time_budget}
    result = optimize_to_certificate(net, inputs, targets, loss=loss, path_decay=path_decay, **options)
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor
    reduced = reduce_branches(result.net, inputs)
    with torch.no_grad():
        accuracy = float((reduced(inputs).argmax(dim=1) == arms).double().mean())
    numbers = {
        "num_samples": num_samples,
        "path_decay": path_decay,
        **_numbers(result),
        "num_branches": result.net.num_branches,
        "num_branches_reduced": reduced.num_branches,
        "accuracy": accuracy,
        "seconds": seconds,
        "processor_seconds": processor_seconds,
    }
    return numbers, reduced


def _numbers(result: OptimizationResult) -> dict[str, Any]:
    certificate = result.certificate
    return {
        "is_certified": certificate.is_certified,
        "primal_value": certificate.primal_value,
        "dual_bound": certificate.dual_bound,
        "relative_gap": certificate.relative_gap,
        "stop": result.stop.name,
        "oracle": certificate.evidence.get("oracle", ""),
        "limited_by": "" if certificate.is_certified else str(certificate.stats.get("reason", result.stop.value)),
    }


def _table(results: Sequence[dict[str, Any]], rtol: float) -> Table:
    table = Table(title=f"Three-class spiral, two-layer ReLU networks (certified: gap at most {100 * rtol:g} %)")
    for heading in ("samples", "objective", "lower\nbound", "gap"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for heading in ("branches", "after\nreduction", "accuracy", "seconds"):
        table.add_column(heading, justify="right")
    table.add_column("bound by")
    for result in results:
        table.add_row(
            str(result["num_samples"]),
            f"{result['primal_value']:.5f}",
            f"{result['dual_bound']:.5f}",
            f"{100 * result['relative_gap']:.2g} %",
            "[green]certified[/]" if result["is_certified"] else "[red]open[/]",
            str(result["num_branches"]),
            str(result["num_branches_reduced"]),
            f"{100 * result['accuracy']:.0f} %",
            f"{result['seconds']:.1f}",
            result["oracle"],
        )
    return table


def _plot(results: Sequence[dict[str, Any]], net: ParallelNet, config: Config, path: Path) -> None:
    """Classes of the largest network beside objective and bound of all."""
    figure = new_figure(11.0, 4.6)
    regions, values = figure.subplots(1, 2)
    largest = max(results, key=lambda result: int(result["num_samples"]))
    _draw_regions(regions, net, *spiral(largest["num_samples"], noise=config.noise, seed=config.seed))
    gap = 100 * largest["relative_gap"]
    regions.set_title(f"{largest['num_samples']} samples: within {gap:.2g} % of the best possible objective", fontsize=11)
    sizes = [result["num_samples"] for result in results]
    objectives = [result["primal_value"] for result in results]
    bounds = [result["dual_bound"] if math.isfinite(result["dual_bound"]) else math.nan for result in results]
    values.plot(sizes, objectives, color=PRIMAL, marker="o", label="objective of the network")
    values.plot(sizes, bounds, color=DUAL, linestyle="--", marker="s", markersize=4, label="proven lower bound")
    for size, objective, result in zip(sizes, objectives, results, strict=True):
        values.annotate(
            f"{100 * result['relative_gap']:.2g} %", (size, objective), (0, 9), textcoords="offset points", ha="center"
        )
    values.set_ylim(0.0, 1.25 * max(objectives))
    values.set_xticks(sizes)
    values.set_xlabel("samples")
    values.set_ylabel("loss + path penalty")
    values.set_title("gap at every number of samples", fontsize=11)
    values.grid(alpha=0.25, linewidth=0.5)
    values.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=130)


@torch.no_grad()
def _draw_regions(axes: Axes, net: ParallelNet, inputs: Tensor, arms: Tensor) -> None:
    ticks = torch.linspace(-1.15, 1.15, 240, dtype=torch.float64)
    grid = torch.cartesian_prod(ticks, ticks)
    classes = net(grid).argmax(dim=1).reshape(240, 240).T
    axes.contourf(
        ticks.numpy(), ticks.numpy(), classes.numpy(), levels=[-0.5, 0.5, 1.5, 2.5], colors=_CLASS_COLOURS, alpha=0.25
    )
    for arm, colour in enumerate(_CLASS_COLOURS):
        points = inputs[arms == arm]
        axes.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=16, color=colour, edgecolors="white", linewidths=0.4)
    axes.set_aspect("equal")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the recipe.

    Args:
        argv: Options; those of the process if ``None``.

    Returns:
        The record that is written as JSON; ``record["is_certified"]`` says whether all networks are.
    """
    config = config_from_args(Config, argv, name="spiral_certificate", description="Certify networks on a three-class spiral.")
    if config.loss not in _LOSSES:
        raise SystemExit(f"--loss is {config.loss!r}; expected one of {', '.join(_LOSSES)}.")
    if config.fast:
        config = dataclasses.replace(config, sizes="15,30", path_decay_fraction=max(config.path_decay_fraction, 0.3))
    console = report_console()
    start = time.perf_counter()
    torch.set_num_threads(config.num_threads)
    seed_everything(config.seed)
    sizes = sorted(int(size) for size in config.sizes.split(","))
    results: list[dict[str, Any]] = []
    for size in track(sizes, "training", console=console):
        numbers, net = solve(size, config)
        results.append(numbers)
    record = {
        "recipe": "spiral_certificate",
        "config": config,
        "environment": environment(),
        "results": results,
        "is_certified": all(result["is_certified"] for result in results),
        "seconds": time.perf_counter() - start,
    }
    output = Path(config.output)
    write_record(output / "record.json", record)
    _plot(results, net, config, output / "spiral.png")
    console.print(_table(results, config.rtol))
    for result in results:
        if not result["is_certified"]:
            console.print(f"{result['num_samples']} samples: {result['limited_by']}", soft_wrap=True)
    written = f"{output / 'record.json'} and {output / 'spiral.png'}"
    console.print(f"Took {record['seconds']:.0f} s. Wrote {written}.", soft_wrap=True)
    return record


if __name__ == "__main__":
    sys.exit(0 if main()["is_certified"] else 1)
