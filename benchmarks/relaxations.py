"""Proven gaps of two-layer ReLU training beyond the rank of boxes: what relaxations reach in a minute or two.

    python -m benchmarks.relaxations            # everything, about forty minutes of CPU time
    python -m benchmarks.relaxations --quick    # one problem, a few seconds

One thread; seconds and limits are CPU time of the process. Writes ``relaxations.txt`` and ``.json``
(``relaxations_quick.*``) to ``benchmarks/results``; the files are complete after every problem.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numerical libraries start their threads

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from benchmarks._cpu_deadline import CpuDeadline
from benchmarks._facts import fact_lines, json_safe, machine_facts
from benchmarks._race_instances import instance_of, network
from benchmarks._race_ours import prepared
from benchmarks._relaxation_instances import RelaxationCase, relaxation_cases, training_data
from benchmarks._suite import Benchmark, Options, run_from_command_line
from torch_strongdual.certification import Certificate
from torch_strongdual.certification._training.training_loop import TrainingLoop
from torch_strongdual.certification._working_branches import WorkingBranches
from torch_strongdual.nn import ParallelWeights

BENCHMARK = Benchmark(title="proven gaps beyond the rank of boxes, by relaxations", duration="40 minutes")

_RTOL = 1e-2
_QUICK_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one problem came to.

    Args:
        case: The problem.
        gap: ``(P - D) / P`` at the end.
        objective: P.
        bound: D.
        asked: Gap to reach; NaN where nothing was asked.
        limit: CPU seconds allowed.
        seconds: CPU seconds used: less where a gap of one percent was proven before.
        num_branches: Of the network.
        bound_from: Which dual point gave the bound, and what proved it.
    """

    case: RelaxationCase
    gap: float
    objective: float
    bound: float
    asked: float
    limit: float
    seconds: float
    num_branches: int
    bound_from: str

    @property
    def is_reached(self) -> bool | None:
        """Whether the gap is as asked."""
        return None if self.asked != self.asked else self.gap <= self.asked


def run(options: Options) -> None:
    """Solve all problems, print, write."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for case in relaxation_cases():
        if options.quick and not case.is_quick:
            continue
        rows.append(solved(case, _QUICK_SECONDS if options.quick else 60.0 if case.num_samples <= 100 else 120.0))
        print(_line(rows[-1]), file=sys.stderr, flush=True)
        _write(rows, options)
    print(_text(rows, machine_facts(("torch", "numpy", "scipy", "scikit-learn"))))


def solved(case: RelaxationCase, seconds: float, *, rtol: float = _RTOL) -> Row:
    """What one problem comes to in so many CPU seconds, or until a relative gap of ``rtol``."""
    inputs, targets = training_data(case.data, case.num_samples, case.rank)
    instance = instance_of(case.data, inputs, targets, "squared", case.fraction)
    net = network(instance)
    solver = prepared(net, instance)
    start = WorkingBranches.of_network(ParallelWeights.from_module(net))
    deadline = CpuDeadline(seconds)
    loop = TrainingLoop(solver, start, rtol=rtol, deadline=deadline, report=lambda record: None)
    loop.run()
    certificate = solver.assess(loop.best.to_weights(solver.problem), rtol=rtol)
    return Row(
        case=case,
        gap=certificate.relative_gap,
        objective=certificate.primal_value,
        bound=certificate.dual_bound,
        asked=(0.01 if case.fraction == 0.2 else 0.05) if case.num_samples <= 100 else float("nan"),
        limit=seconds,
        seconds=deadline.elapsed,
        num_branches=loop.best.number,
        bound_from=_origin(certificate),
    )


def _origin(certificate: Certificate) -> str:
    return f"{certificate.evidence.get('dual_point_from', 'none')}; {certificate.evidence.get('oracle', 'none')}"


def _write(rows: Sequence[Row], options: Options) -> None:
    facts = machine_facts(("torch", "numpy", "scipy", "scikit-learn"))
    record = {"facts": facts, "rtol": _RTOL, "rows": [{**asdict(row), "is_reached": row.is_reached} for row in rows]}
    options.stem.parent.mkdir(parents=True, exist_ok=True)
    options.stem.with_suffix(".txt").write_text(_text(rows, facts))
    options.stem.with_suffix(".json").write_text(json.dumps(json_safe(record), indent=1, allow_nan=False) + "\n")


def _text(rows: Sequence[Row], facts: Mapping[str, object]) -> str:
    return "\n".join([*_heading(facts), "", *map(_line, rows), ""])


def _heading(facts: Mapping[str, object]) -> list[str]:
    return [
        "Proven gaps (P - D)/P of two-layer ReLU training, one output, half the squared distance, beyond the rank of boxes",
        "",
        *fact_lines(facts),
        "optimize_to_certificate (its loop on a clock of CPU seconds), one thread, stopped at a gap of 1 %; nothing repeated.",
        "decay: path decay over the largest useful one (its attained lower bound). Real data: samples at random, standardised",
        "columns, so many leading principal components; digits: even or odd; diabetes: the ten columns, squares and products.",
        "asked: at most 1 % at 0.2 and 5 % at 0.05 for up to 100 samples, within 60 s; + reached, - not reached.",
        "",
        f"{'data':<20} {'n':>4} {'rank':>4} {'decay':>5} {'gap':>8} {'asked':>7} {'seconds':>8} {'limit':>6} "
        f"{'branches':>8}  bound from",
    ]


def _line(row: Row) -> str:
    case = row.case
    asked = "" if row.is_reached is None else f"{row.asked:.0%} {'+' if row.is_reached else '-'}"
    return (
        f"{case.data:<20} {case.num_samples:>4} {case.rank:>4} {case.fraction:>5} {row.gap:>8.4f} {asked:>7} "
        f"{row.seconds:>8.1f} {row.limit:>6g} {row.num_branches:>8}  {row.bound_from}"
    )


if __name__ == "__main__":
    run_from_command_line("relaxations", run, __doc__)
