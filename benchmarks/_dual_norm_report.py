"""Tables, JSON and plot of the dual norm benchmark."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks._dual_norm_rivals import RivalResult
from benchmarks._facts import fact_lines, json_safe, machine_facts

__all__ = ["CompareRow", "ReachRow", "write_report"]

_PACKAGES = ("numpy", "scipy", "torch", "numba", "pyscipopt")


@dataclass(frozen=True, kw_only=True)
class CompareRow:
    """One size of the comparison, to a gap of 1 %; one output.

    Args:
        n: Samples.
        d: Dimensions.
        upper: Proven by this library.
        lower: Attained.
        decay: Weight decay of the network the residual is from.
        seconds: CPU time of this library, data reduction and local ascent included.
        search_seconds: Those of the search alone.
        cells: Boxes examined.
        oracle: What gave the bound.
        ascent: Largest value that local ascent alone finds.
        ascent_seconds: CPU time of that.
        enumeration: Complete enumeration, where it was run.
        scip: SCIP, where it was run.
        scip_note: Why it was not.
    """

    n: int
    d: int
    upper: float
    lower: float
    decay: float
    seconds: float
    search_seconds: float
    cells: int
    oracle: str
    ascent: float
    ascent_seconds: float
    enumeration: RivalResult | None
    scip: RivalResult | None
    scip_note: str

    @property
    def is_closed(self) -> bool:
        """Whether the bounds are within the 1 % asked for."""
        return self.upper <= 1.0101 * self.lower


@dataclass(frozen=True, kw_only=True)
class ReachRow:
    """One instance of the reach table.

    Args:
        name: Of the instance.
        rtol: Tolerance asked for.
        upper: Proven.
        lower: Attained.
        decay: Weight decay of the network the residual is from.
        seconds: CPU time, data reduction and local ascent included.
        search_seconds: Those of the search alone.
        cells: Boxes examined.
        prototype: Cells and seconds of the prototype.
        goal: Seconds asked for.
        limited_by: Empty if the tolerance was reached.
    """

    name: str
    rtol: float
    upper: float
    lower: float
    decay: float
    seconds: float
    search_seconds: float
    cells: int
    prototype: str
    goal: float
    limited_by: str


def write_report(
    compared: Sequence[CompareRow], reached: Sequence[ReachRow], stem: Path, *, settings: Mapping[str, object]
) -> str:
    """Write ``stem`` with the endings .txt, .json and .png; return the text."""
    facts = machine_facts(_PACKAGES)
    text = "\n".join([*_heading(facts, settings), "", *_compare_table(compared), "", *_reach_table(reached), ""])
    stem.with_suffix(".txt").write_text(text)
    record = {
        "facts": facts,
        "settings": dict(settings),
        "compared": [asdict(row) for row in compared],
        "reached": [asdict(row) for row in reached],
    }
    stem.with_suffix(".json").write_text(json.dumps(json_safe(record), indent=1, allow_nan=False) + "\n")
    _plot(compared, stem.with_suffix(".png"))
    return text


def _heading(facts: Mapping[str, object], settings: Mapping[str, object]) -> list[str]:
    return [
        "Dual norms of two-layer ReLU branches, one thread",
        "",
        *fact_lines(facts),
        "The machine was shared with other work; seconds are CPU time of this process, one run, nothing repeated.",
        f"Limits, CPU time: this library {settings['seconds']:g} s (reach {settings['reach_seconds']:g} s) an instance; "
        f"SCIP {settings['scip_seconds']:g} s an instance, {settings['scip_total']:g} s in all.",
        "Dual points are residuals of a trained network of 200 ReLU neurons (20 for n = 100000), weight decay 0.05 beta_max",
        "unless said. Gaussian: standard normal inputs, targets four ReLU neurons plus noise, a tenth of their size unless "
        "said.",
        "Compilation (once an installation, then cached) is not counted.",
    ]


def _compare_table(rows: Sequence[CompareRow]) -> list[str]:
    lines = [
        "## To 1 % against others, one output (AutoTwoLayerOracle)",
        "",
        "upper/lower: proven over attained, for SCIP as it claims. seconds: all of it; cells/s: in the search alone.",
        "x: SCIP's seconds over ours; '>' where SCIP did not get there within its limit, inf where one sign used it up;",
        "its '-': not run. cells: 0 where a relaxation had the last word.",
        "outside: how far the enumerated value lies outside of our bounds.",
        "low by: how far gradient ascent from 1000 starts stays below the best value known.",
        "",
        f"{'d':>3} {'n':>5} | {'upper/lower':>11} {'seconds':>9} {'cells':>9} {'cells/s':>8} "
        f"| {'SCIP s':>8} {'upper/lower':>11} {'x':>8} | {'enumeration s':>13} {'outside':>8} | {'ascent s':>8} {'low by':>8}",
    ]
    for row in sorted(rows, key=lambda r: (r.d, r.n)):
        best = max(row.lower, row.ascent, row.scip.lower if row.scip else 0.0)
        lines.append(
            f"{row.d:>3} {row.n:>5} | {row.upper / row.lower:11.5f} {row.seconds:9.4f} {row.cells:>9} {_speed(row)} "
            f"| {_scip(row):<29} | {_enumeration(row)} | {row.ascent_seconds:8.3f} {1.0 - row.ascent / best:8.1e}"
        )
    lines.append("")
    ratios = sorted(row.scip.seconds / row.seconds for row in rows if row.scip is not None and row.scip.is_complete)
    if ratios:
        lines.append(
            f"SCIP solved {len(ratios)} of {len(rows)} sizes, in {ratios[0]:.0f} to {ratios[-1]:.0f} times the time of this "
            f"library (median {statistics.median(ratios):.0f})."
        )
    notes = [row.scip_note for row in rows if row.scip_note]
    lines += [f"SCIP was not run on {notes.count(note)} sizes: {note}." for note in dict.fromkeys(notes)]
    done = sum(row.is_closed for row in rows)
    return [*lines, f"This library reached 1 % on {done} of {len(rows)} sizes."]


def _scip(row: CompareRow) -> str:
    if row.scip is None:
        return f"{'-':>8} {'-':>11} {'-':>8}"
    ratio = row.scip.upper / row.scip.lower if row.scip.lower > 0 else math.inf
    speed = f"{'' if row.scip.is_complete else '>'}{row.scip.seconds / row.seconds:.0f}"
    return f"{row.scip.seconds:8.2f} {ratio:11.4f} {speed:>8}"


def _enumeration(row: CompareRow) -> str:
    if row.enumeration is None:
        return f"{'-':>13} {'-':>8}"
    value = row.enumeration.upper
    return f"{row.enumeration.seconds:13.3f} {max(value / row.upper - 1.0, row.lower / value - 1.0, 0.0):8.0e}"


def _speed(row: CompareRow | ReachRow) -> str:
    return f"{row.cells / row.search_seconds:8.2g}" if row.cells else f"{'-':>8}"


def _reach_table(rows: Sequence[ReachRow]) -> list[str]:
    lines = [
        "## Reach (BoxBranchAndBound)",
        "",
        "goal and prototype: from the project's plan; the prototype ran on instances of the same kind, not on the same",
        "numbers. search s: without data reduction and the local ascent before it.",
        "kappa/beta: attained value over the weight decay; 1 at a global optimum.",
        "",
        f"{'instance':<32} {'asked':>6} {'upper/lower':>11} {'seconds':>8} {'search s':>8} {'goal s':>6} {'cells':>9} "
        f"{'cells/s':>8} {'prototype cells, s':>20} {'kappa/beta':>10}",
    ]
    for row in rows:
        goal = f"{row.goal:g}" if math.isfinite(row.goal) else "-"
        limit = f" limited by {row.limited_by}" if row.limited_by else ""
        lines.append(
            f"{row.name:<32} {1 + row.rtol:6.3f} {row.upper / row.lower:11.5f} {row.seconds:8.3f} {row.search_seconds:8.3f} "
            f"{goal:>6} {row.cells:>9} {_speed(row)} {row.prototype:>20} {row.lower / row.decay:10.4f}{limit}"
        )
    return lines


def _plot(rows: Sequence[CompareRow], path: Path) -> None:
    """Seconds against n, one panel a dimension."""
    ranks = sorted({row.d for row in rows})
    columns = min(3, len(ranks))
    height = math.ceil(len(ranks) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * height + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(height, columns, squeeze=False, sharey=True).flat)
    sizes = sorted({row.n for row in rows})
    for axes in panels[len(ranks) :]:
        axes.set_visible(False)
    for axes, d in zip(panels, ranks, strict=False):
        here = sorted((row for row in rows if row.d == d), key=lambda row: row.n)
        closed = [row for row in here if row.is_closed]
        opened = [row for row in here if not row.is_closed]
        axes.plot([r.n for r in closed], [r.seconds for r in closed], "o-", color="#1f5a92", label="this library, 1 %")
        axes.plot([r.n for r in opened], [r.seconds for r in opened], "o", mfc="none", color="#1f5a92", label="1 % not reached")
        for row in opened:
            axes.annotate(
                f"{100 * (row.upper / row.lower - 1):.0f} %", (row.n, row.seconds), fontsize=7, ha="center", va="bottom"
            )
        solved = [(r.n, r.scip.seconds) for r in here if r.scip is not None and r.scip.is_complete]
        failed = [(r.n, r.scip.seconds) for r in here if r.scip is not None and not r.scip.is_complete]
        listed = [(r.n, r.enumeration.seconds) for r in here if r.enumeration is not None]
        for points, style, label in (
            (solved, {"marker": "s", "color": "#c1440e"}, "SCIP, 1 %"),
            (failed, {"marker": "x", "color": "#c1440e", "linestyle": "none"}, "SCIP stopped at its limit"),
            (listed, {"marker": "^", "color": "0.45", "linestyle": ":"}, "complete enumeration"),
        ):
            axes.plot([p[0] for p in points], [p[1] for p in points], label=label, **style)
        axes.set_title(f"d = {d}", fontsize=10)
        axes.set_xscale("log")
        axes.set_xlim(0.8 * sizes[0], 1.25 * sizes[-1])
        axes.set_xticks(sizes, labels=[str(n) for n in sizes])
        axes.set_xticks([], minor=True)
        axes.set_yscale("log")
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.set_xlabel("samples n")
        axes.set_ylabel("CPU seconds")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.suptitle("Proven bounds on the dual norm, one thread")
    figure.savefig(path, dpi=110)
