r"""Who reaches the global optimum, how fast, and who can tell.

The same objective, mean squared error plus path decay of a two-layer ReLU network on the diabetes data, is minimised by
``optimize_to_certificate``, by full-batch L-BFGS and by Adam, the last two with 200 neurons and weight decay (at its minimum
over rescalings, weight decay is the path penalty). The picture shows how far each objective is above the best proven bound,
against time. Only the first method proves anything by itself: its two curves, objective and bound, meet.

Run it with ``python -m torch_strongdual.recipes.time_to_certificate``. It prints a table, writes ``record.json`` and
``race.png``, and exits with status 1 if the network is not certified. ``benchmarks/time_to_certificate.py`` measures more
methods on more data.

References:
    Wang, Ergen, Pilanci, "Parallel Deep Neural Networks Have Zero Duality Gap", ICLR 2023. https://arxiv.org/abs/2110.06482
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

import torch
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from torch_strongdual.certification import max_path_decay, optimize_to_certificate
from torch_strongdual.nn import ParallelNet

from ._plot import DUAL, PRIMAL, new_figure
from ._run import config_from_args, environment, option, report_console, seed_everything, write_record

__all__ = ["Config", "main"]

_COLUMNS = ("bmi", "bp", "s5", "s6", "s3", "sex", "age", "s1", "s2", "s4")  # the most telling ones first


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Options of the recipe."""

    num_threads: int = option(1, "threads; networks of this size are slower with more")
    seed: int = option(0, "seed of the weights")
    columns: str = option("3,5", "numbers of columns of the data, one race each")
    fraction: float = option(0.1, "path decay relative to the strength that makes the zero network optimal")
    width: int = option(200, "neurons of L-BFGS and Adam")
    rtol: float = option(1e-4, "relative gap to prove")
    time_budget: float = option(30.0, "seconds for each method")
    output: str = option("runs/time_to_certificate", "folder for record.json and race.png")
    fast: bool = option(False, "one race, a few seconds, a tolerance of one percent")


@dataclass(slots=True, kw_only=True)
class _Trace:
    """Best objectives of a method, and bounds where it has some, against seconds."""

    method: str
    seconds: list[float] = dataclasses.field(default_factory=list)
    objectives: list[float] = dataclasses.field(default_factory=list)
    bounds: list[float] = dataclasses.field(default_factory=list)

    def note(self, seconds: float, objective: float, bound: float = -math.inf) -> None:
        self.seconds.append(seconds)
        self.objectives.append(min([objective, *self.objectives[-1:]]))
        self.bounds.append(bound)


def _data(num_columns: int) -> tuple[Tensor, Tensor]:
    diabetes = load_diabetes()
    columns = [diabetes.feature_names.index(name) for name in _COLUMNS[:num_columns]]
    tables = torch.from_numpy(diabetes.data[:, columns]), torch.from_numpy(diabetes.target)[:, None]
    inputs, targets = ((table - table.mean(dim=0)) / table.std(dim=0, correction=0) for table in tables)
    return inputs, targets


def _ours(inputs: Tensor, targets: Tensor, path_decay: float, config: Config) -> _Trace:
    layers = nn.Linear(inputs.shape[1], 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)
    net = ParallelNet(*layers, num_branches=20, dtype=torch.float64)
    result = optimize_to_certificate(
        net, inputs, targets, loss=nn.MSELoss(), path_decay=path_decay, rtol=config.rtol, time_budget=config.time_budget
    )
    trace = _Trace(method="optimize_to_certificate")
    for record in result.history:
        trace.note(record.seconds, record.objective, record.dual_bound)
    return trace


class _Rival:
    """A network of one wide layer with weight decay, and its path-regularised objective against time."""

    def __init__(self, method: str, inputs: Tensor, targets: Tensor, path_decay: float, config: Config) -> None:
        self.trace = _Trace(method=method)
        self.first = (0.3 * torch.randn(inputs.shape[1], config.width, dtype=inputs.dtype)).requires_grad_()
        self.last = (0.3 * torch.randn(config.width, 1, dtype=inputs.dtype)).requires_grad_()
        self._data, self._path_decay = (inputs, targets), path_decay
        self._start, self._budget = time.perf_counter(), config.time_budget

    def start_clock(self) -> None:
        """Leave out what came before: imports, and optimizers being made."""
        self._start = time.perf_counter()

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.perf_counter() - self._start > self._budget

    def value(self) -> Tensor:
        """Loss plus weight decay; notes loss plus path penalty, which is at most as large."""
        inputs, targets = self._data
        loss = nn.functional.mse_loss(torch.relu(inputs @ self.first) @ self.last, targets)
        squares = self.first.square().sum(dim=0), self.last.square().sum(dim=1)
        with torch.no_grad():
            penalty = torch.sqrt(squares[0] * squares[1]).sum()
            self.trace.note(time.perf_counter() - self._start, float(loss + self._path_decay * penalty))
        total: Tensor = loss + 0.5 * self._path_decay * (squares[0] + squares[1]).sum()
        return total


def _lbfgs(inputs: Tensor, targets: Tensor, path_decay: float, config: Config) -> _Trace:
    rival = _Rival("L-BFGS", inputs, targets, path_decay, config)
    optimizer = torch.optim.LBFGS(
        [rival.first, rival.last], max_iter=20, history_size=20, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    rival.start_clock()

    def closure() -> float:
        optimizer.zero_grad()
        total = rival.value()
        total.backward()  # type: ignore[no-untyped-call]
        return float(total.detach())

    before = math.inf
    while not rival.is_over:
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        now = rival.trace.objectives[-1]
        if before - now <= 1e-12 * now:
            break
        before = now
    return rival.trace


def _adam(inputs: Tensor, targets: Tensor, path_decay: float, config: Config) -> _Trace:
    rival = _Rival("Adam", inputs, targets, path_decay, config)
    num_steps = 5000
    optimizer = torch.optim.Adam([rival.first, rival.last], lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    rival.start_clock()
    for _ in range(num_steps):
        if rival.is_over:
            break
        optimizer.zero_grad()
        rival.value().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return rival.trace


_METHODS: tuple[Callable[[Tensor, Tensor, float, Config], _Trace], ...] = (_ours, _lbfgs, _adam)


def race(num_columns: int, config: Config) -> dict[str, Any]:
    """Run all methods on as many columns; return what to record."""
    inputs, targets = _data(num_columns)
    layers = nn.Linear(num_columns, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)
    largest = max_path_decay(ParallelNet(*layers, num_branches=1), inputs, targets, loss=nn.MSELoss()).lower
    traces = []
    for method in _METHODS:
        seed_everything(config.seed)
        traces.append(method(inputs, targets, config.fraction * largest, config))
    bound = traces[0].bounds[-1]
    objective = traces[0].objectives[-1]
    return {
        "num_columns": num_columns,
        "num_samples": len(inputs),
        "path_decay": config.fraction * largest,
        "dual_bound": bound,
        "is_certified": objective - bound <= config.rtol * objective,
        "methods": [_summary(trace, bound, config.rtol) for trace in traces],
        "traces": [dataclasses.asdict(_thinned(trace)) for trace in traces],
    }


def _summary(trace: _Trace, bound: float, rtol: float) -> dict[str, Any]:
    near = [s for s, value in zip(trace.seconds, trace.objectives, strict=True) if value - bound <= 2.0 * rtol * value]
    objective = trace.objectives[-1]
    return {
        "method": trace.method,
        "objective": objective,
        "above_bound": (objective - bound) / objective,
        "own_gap": (objective - trace.bounds[-1]) / objective if math.isfinite(trace.bounds[-1]) else None,
        "seconds": trace.seconds[-1],
        "seconds_to_twice_rtol": near[0] if near else None,
    }


def _thinned(trace: _Trace, most: int = 300) -> _Trace:
    """At most so many points, for the record and the picture."""
    step = max(1, len(trace.seconds) // most)
    keep = [*range(0, len(trace.seconds) - 1, step), len(trace.seconds) - 1]
    lists = ([values[i] for i in keep] for values in (trace.seconds, trace.objectives, trace.bounds))
    return _Trace(method=trace.method, **dict(zip(("seconds", "objectives", "bounds"), lists, strict=True)))


def _table(results: Sequence[dict[str, Any]], rtol: float) -> Table:
    table = Table(title="Races to the global optimum, diabetes data")
    headings = ("above the\nproven bound", "gap it proves\nitself", f"s to within {200 * rtol:g} %\nof the bound", "seconds")
    table.add_column("columns")
    table.add_column("method")
    table.add_column("objective", justify="right")
    for heading in headings:
        table.add_column(heading, justify="right")
    for result in results:
        for row in result["methods"]:
            own = "none" if row["own_gap"] is None else f"{100 * row['own_gap']:.2g} %"
            near = "-" if row["seconds_to_twice_rtol"] is None else f"{row['seconds_to_twice_rtol']:.2f}"
            numbers = (f"{row['objective']:.6f}", f"{100 * row['above_bound']:.2g} %", own, near, f"{row['seconds']:.1f}")
            table.add_row(str(result["num_columns"]), row["method"], *numbers)
    return table


def _plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    figure = new_figure(6.2 * len(results), 4.4)
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, result in zip(panels, results, strict=True):
        best = result["dual_bound"]
        for trace, colour in zip(result["traces"], (PRIMAL, "0.35", "0.65"), strict=True):
            heights = [max(value / best - 1.0, 1e-7) for value in trace["objectives"]]
            axes.step([max(s, 1e-3) for s in trace["seconds"]], heights, where="post", color=colour, label=trace["method"])
        ours = result["methods"][0]
        axes.plot(ours["seconds"], max(ours["above_bound"], 1e-7), "o", color=DUAL, label=f"proven: {ours['own_gap']:.1e}")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("seconds")
        axes.set_ylabel("distance from the best proven bound, relative")
        axes.set_title(f"{result['num_columns']} columns, {result['num_samples']} samples", fontsize=11)
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the recipe.

    Args:
        argv: Options; those of the process if ``None``.

    Returns:
        The record that is written as JSON; ``record["is_certified"]`` says whether all races end certified.
    """
    config = config_from_args(Config, argv, name="time_to_certificate", description="Race to a proven global optimum.")
    if config.fast:
        config = dataclasses.replace(
            config,
            columns="3",
            rtol=max(config.rtol, 1e-2),
            time_budget=min(config.time_budget, 5.0),
            width=min(config.width, 50),
        )
    console = report_console()
    start = time.perf_counter()
    torch.set_num_threads(config.num_threads)
    counts = [int(count) for count in config.columns.split(",")]
    results = [race(count, config) for count in track(counts, "racing", console=console)]
    record = {
        "recipe": "time_to_certificate",
        "config": config,
        "environment": environment(),
        "results": results,
        "is_certified": all(result["is_certified"] for result in results),
        "seconds": time.perf_counter() - start,
    }
    output = Path(config.output)
    write_record(output / "record.json", record)
    _plot(results, output / "race.png")
    console.print(_table(results, config.rtol))
    written = f"{output / 'record.json'} and {output / 'race.png'}"
    console.print(f"Took {record['seconds']:.0f} s. Wrote {written}.", soft_wrap=True)
    return record


if __name__ == "__main__":
    sys.exit(0 if main()["is_certified"] else 1)
