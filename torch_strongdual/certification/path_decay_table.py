"""Certified optima along a sequence of strengths, as a table and as a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch_strongdual.certification.optimization_result import OptimizationResult
from torch_strongdual.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PathDecayRow", "PathDecayTable"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PathDecayRow:
    """What was found at one strength.

    Args:
        path_decay: The strength.
        loss: Training loss, without the penalty.
        penalty: Penalty, without ``path_decay``; the optimal objective has this derivative in ``path_decay``.
        result: Network, certificate and history.
    """

    path_decay: float
    loss: float
    penalty: float
    result: OptimizationResult


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PathDecayTable:
    """Strengths in decreasing order; ``str`` gives a table to print, :meth:`plot` a picture.

    Args:
        rows: One for each strength.
    """

    rows: tuple[PathDecayRow, ...]

    def __str__(self) -> str:
        """Columns of equal width, one line a strength."""
        head = ("path_decay", "objective", "dual bound", "gap", "loss", "penalty", "branches", "seconds")
        lines: list[tuple[str, ...]] = [head]
        for row in self.rows:
            certificate, last = row.result.certificate, row.result.history[-1]
            numbers = (row.path_decay, certificate.primal_value, certificate.dual_bound)
            lines.append(
                (
                    *[f"{number:.6g}" for number in numbers],
                    f"{100 * certificate.relative_gap:.2g} %",
                    f"{row.loss:.6g}",
                    f"{row.penalty:.6g}",
                    str(row.result.net.num_branches),
                    f"{last.seconds:.1f}",
                )
            )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw objective, proven bound, loss and penalty against the strength.

        The optimal objective is concave in the strength, and the penalty of the optimal network is its slope.

        Args:
            axes: Where to draw; a new figure if ``None``, which ``plot().get_figure().savefig(...)`` writes to a file.

        Returns:
            The axes; the penalty stands on a second vertical axis at the right.

        Raises:
            MissingDependencyError: If matplotlib is not installed.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from torch_strongdual.certification import path_decay_path
            >>> from torch_strongdual.nn import ParallelNet
            >>> net = ParallelNet(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False), num_branches=1)
            >>> x, y = torch.eye(2), torch.tensor([[2.0], [-1.0]])
            >>> axes = path_decay_path(net, x, y, loss=nn.MSELoss(), fractions=(0.8, 0.4)).plot()
            >>> axes.get_xlabel()
            'path_decay'
        """
        axes = _new_axes() if axes is None else axes
        decays = [row.path_decay for row in self.rows]
        objectives = [row.result.certificate.primal_value for row in self.rows]
        bounds = [row.result.certificate.dual_bound for row in self.rows]
        bounds = [bound if math.isfinite(bound) else math.nan for bound in bounds]
        right = axes.twinx()
        right.plot(decays, [row.penalty for row in self.rows], color="0.55", linestyle="-.", label="penalty (right axis)")
        right.set_ylabel("penalty", color="0.45")
        right.set_ylim(bottom=0.0)
        axes.fill_between(decays, bounds, objectives, color=_DUAL, alpha=0.15, linewidth=0)
        axes.plot(decays, objectives, color=_PRIMAL, marker="o", markersize=4, label="objective of the network")
        axes.plot(decays, bounds, color=_DUAL, linestyle="--", marker="s", markersize=3, label="proven lower bound")
        axes.plot(decays, [row.loss for row in self.rows], color=_PRIMAL, linestyle=":", label="its loss alone")
        axes.set_xscale("log")
        axes.set_xticks(decays, [f"{decay:.2g}" for decay in decays])
        axes.minorticks_off()
        axes.set_xlabel("path_decay")
        axes.set_ylabel("loss + path_decay x penalty")
        axes.grid(alpha=0.25, which="both", linewidth=0.5)
        lines = [*axes.get_lines(), *right.get_lines()]
        labels = [str(line.get_label()) for line in lines]
        axes.legend(lines, labels, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(lines), fontsize=9)
        return axes


_PRIMAL, _DUAL = "#c1440e", "#1f5a92"


def _new_axes() -> Axes:
    """Axes of a figure that no global state knows of."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", purpose="Drawing a PathDecayTable") from error
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()
