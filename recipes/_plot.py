"""Pictures of recipes: figures and colours, and objective with proven bound, the gap between them shaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["DUAL", "PRIMAL", "Curve", "new_figure", "plot_certificates"]

PRIMAL, DUAL = "#c1440e", "#1f5a92"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One panel.

    Args:
        title: Above the panel.
        epochs: Epochs done at each certificate.
        primal_values: Objective of the network at each certificate.
        dual_bounds: Proven lower bound on every network's objective at each certificate; ``-inf`` is not drawn.
        relative_gap: That of the last certificate.
    """

    title: str
    epochs: Sequence[int]
    primal_values: Sequence[float]
    dual_bounds: Sequence[float]
    relative_gap: float


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches, to be written to a file. No pyplot: no global state, no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_certificates(curves: Sequence[Curve], path: Path, *, rtol: float) -> None:
    """Draw the curves, two panels in a row, and write them to ``path`` as PNG.

    Args:
        curves: What to draw.
        path: The file; its folder exists.
        rtol: Relative gap up to which a network counts as certified.
    """
    num_rows = math.ceil(len(curves) / 2)
    figure = new_figure(11.0, 3.9 * num_rows + 0.6)
    panels = list(figure.subplots(num_rows, 2, squeeze=False).flat)
    for axes, curve in zip(panels, curves, strict=False):
        _draw(axes, curve, rtol)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    figure.suptitle("Training networks to a proven global optimum", fontsize=14, fontweight="bold")
    figure.savefig(path, dpi=130)


def _draw(axes: Axes, curve: Curve, rtol: float) -> None:
    bounds = [bound if math.isfinite(bound) else math.nan for bound in curve.dual_bounds]
    axes.fill_between(curve.epochs, bounds, curve.primal_values, color=DUAL, alpha=0.15, linewidth=0, label="duality gap")
    axes.plot(curve.epochs, curve.primal_values, color=PRIMAL, marker="o", markersize=4, label="objective of the network")
    axes.plot(curve.epochs, bounds, color=DUAL, marker="s", markersize=4, label="proven lower bound for every network")
    verdict = "globally optimal" if curve.relative_gap <= rtol else "not certified"
    axes.annotate(
        f"{verdict}: gap {100 * curve.relative_gap:.2g} %",
        xy=(curve.epochs[-1], curve.primal_values[-1]),
        xytext=(0, 22),
        textcoords="offset points",
        ha="right",
        arrowprops={"arrowstyle": "->", "color": "0.3"},
    )
    axes.set_title(curve.title, fontsize=11)
    axes.set_xlabel("epochs")
    axes.set_ylabel("loss + path penalty")
    axes.grid(alpha=0.25, which="both", linewidth=0.5)
    axes.legend(frameon=False, loc="upper right", fontsize=9)
