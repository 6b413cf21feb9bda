"""Proven gaps beside those of the first, rough prototypes of the relaxations, in the time that each of those took.

    python -m benchmarks.relaxation_prototypes            # about eight minutes of CPU time
    python -m benchmarks.relaxation_prototypes --quick    # the smallest problem, a quarter of a minute

One thread; seconds are CPU time of the process and include the training of the network. Writes
``relaxation_prototypes.txt`` and ``.json`` to ``benchmarks/results``; the files are complete after every problem.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numerical libraries start their threads

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from benchmarks._facts import fact_lines, json_safe, machine_facts
from benchmarks._relaxation_instances import RelaxationCase
from benchmarks._suite import Benchmark, Options, run_from_command_line
from benchmarks.relaxations import Row, solved

BENCHMARK = Benchmark(title="proven gaps beside those of the prototypes of the relaxations", duration="8 minutes")

_RTOL = 1e-3


@dataclass(frozen=True, kw_only=True)
class Prototype:
    """What a prototype reached on an instance of the same kind and size, not on the same numbers.

    Args:
        case: Kind and size.
        joint: Gap with a joint dual point, and seconds.
        branching: Gap with the residual and sign branching, and seconds.
        limit: Seconds for this library where neither is known.
    """

    case: RelaxationCase
    joint: tuple[float, float] | None = None
    branching: tuple[float, float] | None = None
    limit: float = 60.0

    @property
    def best(self) -> tuple[float, float]:
        """The smaller gap, and its seconds."""
        known = [pair for pair in (self.joint, self.branching) if pair is not None]
        return min(known) if known else (float("nan"), self.limit)


def prototypes() -> list[Prototype]:
    """The table of the plan."""

    def case(data: str, num_samples: int, rank: int, fraction: float) -> RelaxationCase:
        return RelaxationCase(data=data, num_samples=num_samples, rank=rank, fraction=fraction)

    return [
        Prototype(case=case("Gaussian", 60, 5, 0.05), joint=(0.062, 11), branching=(0.008, 15)),
        Prototype(case=case("Gaussian", 100, 10, 0.05), joint=(0.125, 16), branching=(0.026, 130)),
        Prototype(case=case("Gaussian", 100, 10, 0.2), joint=(0.037, 9), branching=(0.009, 28)),
        Prototype(case=case("Gaussian", 100, 20, 0.2), joint=(0.0035, 11)),
        Prototype(case=case("diabetes", 50, 10, 0.05), joint=(0.100, 5), branching=(0.026, 12)),
        Prototype(case=case("diabetes", 100, 10, 0.05), joint=(0.155, 22)),
        Prototype(case=case("diabetes", 100, 10, 0.2), joint=(0.0026, 35), branching=(0.0045, 7)),
        Prototype(case=case("wine", 100, 13, 0.05), joint=(0.0036, 42)),
        Prototype(case=case("breast_cancer", 100, 30, 0.05), joint=(0.020, 45)),
        Prototype(case=case("Gaussian", 200, 10, 0.2), joint=(0.015, 37)),
        Prototype(case=case("Gaussian", 500, 10, 0.2)),
    ]


def run(options: Options) -> None:
    """Solve all problems, print, write."""
    torch.set_num_threads(1)
    rows: list[tuple[Prototype, Row]] = []
    for prototype in prototypes()[: 1 if options.quick else None]:
        rows.append((prototype, solved(prototype.case, prototype.best[1], rtol=_RTOL)))
        print(_line(*rows[-1]), file=sys.stderr, flush=True)
        _write(rows, options)
    print(_text(rows, machine_facts(("torch", "numpy", "scipy", "scikit-learn"))))


def _write(rows: Sequence[tuple[Prototype, Row]], options: Options) -> None:
    facts = machine_facts(("torch", "numpy", "scipy", "scikit-learn"))
    record = {"facts": facts, "rtol": _RTOL, "rows": [{"prototype": asdict(p), "reached": asdict(row)} for p, row in rows]}
    options.stem.parent.mkdir(parents=True, exist_ok=True)
    options.stem.with_suffix(".txt").write_text(_text(rows, facts))
    options.stem.with_suffix(".json").write_text(json.dumps(json_safe(record), indent=1, allow_nan=False) + "\n")


def _text(rows: Sequence[tuple[Prototype, Row]], facts: Mapping[str, object]) -> str:
    heading = [
        "Proven gaps (P - D)/P of two-layer ReLU training beside those of the prototypes of the relaxations",
        "",
        *fact_lines(facts),
        "This library: optimize_to_certificate (its loop on a clock of CPU seconds), one thread, training included, in the",
        "time of the prototype's smaller gap, stopped at a gap of 0.1 %; nothing repeated. Prototypes: figures of the plan,",
        "on instances of the same kind and size (not the same numbers), training not included; joint: a dual point chosen with",
        "its relaxed dual norm; branching: the residual with sign branching. + smaller than both, - not.",
        "",
        f"{'data':<14} {'n':>4} {'rank':>4} {'decay':>5} {'gap':>8} {'seconds':>8}   {'joint (s)':>12} "
        f"{'branching (s)':>14}  bound from",
    ]
    return "\n".join([*heading, "", *(_line(*row) for row in rows), ""])


def _line(prototype: Prototype, row: Row) -> str:
    case, best = prototype.case, prototype.best[0]
    mark = " " if best != best else "+" if row.gap < best else "-"
    return (
        f"{case.data:<14} {case.num_samples:>4} {case.rank:>4} {case.fraction:>5} {row.gap:>8.4f} {row.seconds:>8.1f} {mark} "
        f"{_pair(prototype.joint):>12} {_pair(prototype.branching):>14}  {row.bound_from}"
    )


def _pair(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"{pair[0]:.4f} ({pair[1]:g})"


if __name__ == "__main__":
    run_from_command_line("relaxation_prototypes", run, __doc__)
