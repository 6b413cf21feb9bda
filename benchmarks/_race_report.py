"""Tables, JSON and plot of the race."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks._facts import fact_lines, json_safe, machine_facts
from benchmarks._race_goals import GoalRow
from benchmarks._race_trace import Point

__all__ = ["InstanceResult", "MethodResult", "write_report"]

_PACKAGES = ("numpy", "scipy", "torch", "numba", "cvxpy", "clarabel", "pyscnn")
_TIMES = (1.0, 5.0, 20.0, 60.0)
_LOWEST_SHOWN = 1e-6  # smaller gaps stand at the edge
_COLOURS = {
    "this library": "#1f5a92",
    "L-BFGS, restarts": "#c1440e",
    "Adam, restarts": "#d99a2b",
    "sampled gates, Clarabel": "#5b8c5a",
    "pyscnn ConvexReLU": "#7d4f9e",
}


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """What one method found.

    Args:
        method: Its name.
        points: Best so far at each time; empty if it did not run.
        seconds: CPU time until it ended.
        note: Why it did not run, or ended early.
    """

    method: str
    points: Sequence[Point]
    seconds: float
    note: str

    def objective_at(self, seconds: float) -> float:
        """Best objective by then."""
        return min((point.objective for point in self.points if point.seconds <= seconds), default=math.inf)

    def seconds_to(self, objective: float) -> float:
        """When the objective was first this low."""
        return next((point.seconds for point in self.points if point.objective <= objective), math.inf)

    @property
    def final(self) -> float:
        """The last objective."""
        return self.points[-1].objective if self.points else math.inf

    @property
    def bound(self) -> float:
        """The last bound."""
        return self.points[-1].bound if self.points else -math.inf


@dataclass(frozen=True, kw_only=True)
class InstanceResult:
    """One instance, all methods.

    Args:
        name: Of the instance.
        limit: CPU seconds each method had.
        optimum: Where it is known, else NaN.
        methods: This library first.
    """

    name: str
    limit: float
    optimum: float
    methods: Sequence[MethodResult]

    @property
    def bound(self) -> float:
        """The best one proven."""
        return max(method.bound for method in self.methods)


def write_report(
    results: Sequence[InstanceResult], reached: Sequence[GoalRow], stem: Path, *, settings: Mapping[str, object]
) -> str:
    """Write ``stem`` with the endings .txt, .json and .png; return the text."""
    facts = machine_facts(_PACKAGES)
    text = "\n".join(
        [*_heading(facts, settings), "", *_race_table(results), "", *_summary(results), "", *_goal_table(reached), ""]
    )
    stem.with_suffix(".txt").write_text(text)
    record = {
        "facts": facts,
        "settings": dict(settings),
        "race": [asdict(result) for result in results],
        "goals": [{**asdict(row), "is_reached": row.is_reached} for row in reached],
    }
    stem.with_suffix(".json").write_text(json.dumps(json_safe(record), indent=1, allow_nan=False) + "\n")
    _plot(results, stem.with_suffix(".png"))
    return text


def _heading(facts: Mapping[str, object], settings: Mapping[str, object]) -> list[str]:
    earlier = settings.get("other_methods_measured")
    kept = f"Only this library was measured in this run; rows of the other methods are from an earlier one: {earlier}."
    return [
        "Training two-layer ReLU networks to the global optimum: objective and proven gap over time",
        "",
        *fact_lines(facts),
        *([kept] if earlier else []),
        "One run, nothing repeated; one thread; seconds are CPU time of the process, so that other work on the machine",
        "disturbs them little. Objective: loss (half the squared distance, or cross-entropy, summed) + decay x sum of products",
        "of norms, recomputed in float64 by one function for all. Compilation (once an installation) is not counted.",
        "Decay: 0.05 of the largest useful one; 0.2 where the name says so; planted problems have their own.",
        "L-BFGS and Adam: 200 neurons, weight decay, restarts until the time is up or three in a row brought nothing.",
        "sampled gates: convex program over 20, 40, 80, ... activation patterns. pyscnn: its augmented Lagrangian over 100,",
        "400, 1600, ... of them. Both: one neuron an output and sign, which for several outputs is not the optimum.",
    ]


def _race_table(results: Sequence[InstanceResult]) -> list[str]:
    times = "".join(f" {f'at {seconds:g} s':>12}" for seconds in _TIMES)
    lines = [
        "## Race",
        "",
        "within 1 %, 0.1 %: seconds until the objective is that close to the best bound proven by anyone; '-' not within the",
        "limit (where the bound itself is farther from the optimum nobody can). proves: the relative gap between own objective",
        "and own bound; '-' no bound on the global optimum.",
    ]
    for result in results:
        known = f", optimum {result.optimum:.8g}" if math.isfinite(result.optimum) else ""
        lines += [
            "",
            f"{result.name}: {result.limit:g} s each, best bound {result.bound:.8g}{known}",
            f"  {'':<24}{times} {'within 1 %':>11} {'0.1 %':>8} {'proves':>9} {'ended':>7}",
        ]
        lines += [_method_line(result, method) for method in result.methods]
    return lines


def _method_line(result: InstanceResult, method: MethodResult) -> str:
    if not method.points:
        return f"  {method.method:<24} {method.note}"
    values = "".join(f" {_objective(result, method, seconds):>12}" for seconds in _TIMES)
    near = [method.seconds_to(result.bound + share * abs(result.bound)) for share in (1e-2, 1e-3)]
    gap = (method.final - method.bound) / abs(method.final)
    proves = f"{gap:9.1e}" if math.isfinite(gap) else f"{'-':>9}"
    note = f"  ({method.note})" if method.note else ""
    return f"  {method.method:<24}{values} {_seconds(near[0]):>11} {_seconds(near[1]):>8} {proves} {method.seconds:7.1f}{note}"


def _objective(result: InstanceResult, method: MethodResult, seconds: float) -> str:
    """Methods that ended before keep what they had; beyond the limit nothing is known."""
    if seconds > result.limit and method.seconds >= 0.95 * result.limit:
        return ""
    value = method.objective_at(seconds)
    return f"{value:.7g}" if math.isfinite(value) else "-"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def _summary(results: Sequence[InstanceResult]) -> list[str]:
    """Whether anyone ended lower than this library by more than the gap it proves (nobody can, if bounds are bounds)."""
    lines = []
    for result in results:
        ours, *others = result.methods
        best = min(others, key=lambda method: method.final)
        if best.final < ours.final * (1.0 - 1e-9):
            lines.append(f"{result.name}: {best.method} ended {(ours.final - best.final) / ours.final:.1e} lower.")
    crossed = [result.name for result in results if min(m.final for m in result.methods) < result.bound * (1.0 - 1e-12)]
    lines += [f"{name}: an objective lies BELOW the bound: a bug." for name in crossed]
    return ["## Where another method ended lower than this library", "", *(lines or ["Nowhere."])]


def _goal_table(rows: Sequence[GoalRow]) -> list[str]:
    lines = [
        "## Goals of optimize_to_certificate",
        "",
        "asked: relative gap, within CPU seconds of one thread; objective: seconds until within 1e-4 of the final objective.",
        "",
        f"{'instance':<40} {'asked':>8} {'within s':>8} {'gap':>9} {'seconds':>8} {'objective':>9} {'branches':>8}",
    ]
    for row in rows:
        verdict = "reached" if row.is_reached else f"NOT reached: {row.stop}; {row.reason}"
        lines.append(
            f"{row.name:<40} {row.asked:8.0e} {row.limit:8g} {row.gap:9.2e} {row.seconds:8.2f} {row.objective_seconds:9.2f} "
            f"{row.num_branches:>8} {verdict}"
        )
    return lines


def _plot(results: Sequence[InstanceResult], path: Path) -> None:
    """Distance of each objective from the best bound over time, one panel an instance; for this library its own gap too."""
    columns = min(3, len(results))
    height = math.ceil(len(results) / columns)
    figure = Figure(figsize=(4.4 * columns, 3.2 * height + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(height, columns, squeeze=False).flat)
    for axes in panels[len(results) :]:
        axes.set_visible(False)
    for axes, result in zip(panels, results, strict=False):
        for method in result.methods:
            shown = [point for point in method.points if math.isfinite(point.objective)]
            excess = [max((p.objective - result.bound) / abs(result.bound), 1e-9) for p in shown]
            axes.step([p.seconds for p in shown], excess, where="post", color=_COLOURS[method.method], label=method.method)
        ours = result.methods[0]
        with_bound = [p for p in ours.points if math.isfinite(p.bound)]
        proven = [(p.seconds, max((p.objective - p.bound) / abs(p.objective), _LOWEST_SHOWN)) for p in with_bound]
        if proven:
            # Often there is one bound, the last: a line through one point would not be seen without its mark.
            style = {"linestyle": ":", "marker": "o", "markersize": 4, "color": _COLOURS[ours.method]}
            axes.step(*zip(*proven, strict=True), where="post", label="gap this library proves", clip_on=False, **style)
        axes.set_title(result.name, fontsize=10)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(1e-2, result.limit)
        axes.set_ylim(_LOWEST_SHOWN, 2.0)
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.set_xlabel("CPU seconds")
        axes.set_ylabel("objective above best bound")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle("Objective over time, relative to the best proven bound")
    figure.savefig(path, dpi=110)
