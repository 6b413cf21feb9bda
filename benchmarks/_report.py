"""Tables of ratios, as text for people and JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks._facts import fact_lines, json_safe, machine_facts
from benchmarks._ratios import Ratio

__all__ = ["RatioReport", "RatioRow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioRow:
    """One ratio and what was asked of it.

    Args:
        work: What was computed, sizes included.
        ratio: As measured.
        target: At most this was asked for; ``None`` where nothing was.
    """

    work: str
    ratio: Ratio
    target: float | None = None

    @property
    def is_reached(self) -> bool | None:
        """Whether the median is within the target."""
        return None if self.target is None else self.ratio.median <= self.target


@dataclass(kw_only=True)
class RatioReport:
    """Ratios of one benchmark, written as ``NAME.txt`` and ``NAME.json``.

    Args:
        title: First line of the text.
        rows: In the order shown.
        notes: Sentences under the heading: what the references are, what is not measured.
        extra: Further measurements, for the JSON file; say in ``notes`` what people should know of them.
    """

    title: str
    rows: list[RatioRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, object] = field(default_factory=dict)

    def write(self, stem: Path, *, packages: Sequence[str] = ("torch", "numpy"), device: str = "cpu") -> str:
        """Write the files ``stem``.txt and ``stem``.json; return the text."""
        facts = machine_facts(packages, device=device)
        text = "\n".join([self.title, "", *fact_lines(facts), *_how(self.rows), *self.notes, "", *_table(self.rows), ""])
        record = {
            "title": self.title,
            "facts": facts,
            "notes": self.notes,
            "rows": [_record(row) for row in self.rows],
            "extra": self.extra,
        }
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".txt").write_text(text)
        stem.with_suffix(".json").write_text(json.dumps(json_safe(record), indent=1, allow_nan=False) + "\n")
        return text


def _record(row: RatioRow) -> Mapping[str, object]:
    return {"work": row.work, "target": row.target, "is_reached": row.is_reached, **asdict(row.ratio)}


def _how(rows: Sequence[RatioRow]) -> list[str]:
    if not rows:
        return []
    repetitions = sorted({row.ratio.repetitions for row in rows})
    clocks = " and ".join(f"{clock} ({threads} thread{'s' * (threads > 1)})" for threads, clock in _clocks(rows))
    return [
        f"Ratios: median (quartiles) of {' or '.join(map(str, repetitions))} repetitions in which candidate and reference take "
        f"turns; {clocks}.",
        "Below 1 is faster than the reference. `asked` is the ratio to reach; + reached, - not reached.",
    ]


def _clocks(rows: Sequence[RatioRow]) -> list[tuple[int, str]]:
    return sorted({(row.ratio.num_threads, row.ratio.clock) for row in rows})


def _table(rows: Sequence[RatioRow]) -> list[str]:
    if not rows:
        return []
    widths = [max(len(text) for text in column) for column in zip(*_names(rows), strict=True)]
    head = ("work", "candidate", "reference")
    widths = [max(width, len(name)) for width, name in zip(widths, head, strict=True)]
    columns = "  ".join(f"{name:<{width}}" for name, width in zip(head, widths, strict=True))
    lines = [f"{columns}  threads  {'ratio (quartiles)':<22}  {'asked':>7}  {'time':>10}  {'reference':>10}"]
    for row, names in zip(rows, _names(rows), strict=True):
        columns = "  ".join(f"{name:<{width}}" for name, width in zip(names, widths, strict=True))
        ratio = row.ratio
        spread = f"{_short(ratio.median)} ({_short(ratio.low)} to {_short(ratio.high)})"
        asked = "" if row.target is None else f"{row.target:g} {'+' if row.is_reached else '-'}"
        lines.append(
            f"{columns}  {ratio.num_threads:>7}  {spread:<22}  {asked:>7}  {_duration(ratio.seconds):>10}  "
            f"{_duration(ratio.reference_seconds):>10}"
        )
    return lines


def _names(rows: Sequence[RatioRow]) -> list[tuple[str, str, str]]:
    return [(row.work, row.ratio.candidate, row.ratio.reference) for row in rows]


def _short(number: float) -> str:
    """Three significant digits, no exponent where people expect none."""
    if number == 0 or not math.isfinite(number):
        return str(number)
    return f"{number:.{max(0, 2 - math.floor(math.log10(abs(number))))}f}"


def _duration(seconds: float) -> str:
    return f"{1e6 * seconds:.1f} us" if seconds < 1e-3 else f"{1e3 * seconds:.2f} ms" if seconds < 1 else f"{seconds:.3f} s"
