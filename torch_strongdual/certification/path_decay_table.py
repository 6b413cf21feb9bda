"""Certified optima along a sequence of strengths, as a table."""

from __future__ import annotations

from dataclasses import dataclass

from torch_strongdual.certification.optimization_result import OptimizationResult

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
    """Strengths in decreasing order; ``str`` gives a table to print.

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
