"""How tight the bounds for three and four layers are, on residuals of trained networks.

    python -m benchmarks.depth_tightness            # all instances, about seven minutes of CPU time
    python -m benchmarks.depth_tightness --quick    # two small ones, less trained: some 10 seconds

One thread; seconds and limits are CPU time of the process. Writes ``depth_tightness.txt`` and ``depth_tightness.json``
(``depth_tightness_quick.*``) to ``benchmarks/results``.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numerical libraries start their threads

import json
import sys
import time
from dataclasses import asdict, dataclass

from benchmarks._cpu_deadline import CpuDeadline
from benchmarks._deep_instances import DeepCase, TrainedNet, deep_cases, trained
from benchmarks._facts import fact_lines, json_safe, machine_facts
from benchmarks._suite import Benchmark, Options, run_from_command_line
from torch_strongdual.certification import DualSolver, TrainingProblem
from torch_strongdual.certification.oracles import AutoOracle, BoundRequest
from torch_strongdual.nn import ParallelWeights

BENCHMARK = Benchmark(title="tightness of the bounds for three and four layers", duration="7 minutes")

_RTOL = 1e-2
_NOTES = (
    "Parallel networks of 40 branches, hidden width 4 (the last 1), trained by PathAdamW on the full batch. `share`: their",
    "path_decay relative to the strength from which on the zero network is optimal. lower, upper: of the dual norm of the",
    "network's residual, in units of path_decay, which is the dual norm at the optimum; lower is attained by an explicit",
    "branch, upper is proven, 1 % was asked for. gap: certified relative gap of the network by `DualSolver.step` (what",
    "`certify` does), which also improves the dual point.",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network.

    Args:
        data: Name of the data.
        num_layers: Linear layers of a branch.
        share: Strength of the penalty relative to the largest useful one.
        lower: Attained by a branch, in units of the path decay.
        upper: Proven, in the same units.
        seconds: CPU time of the bounds.
        limited_by: Why the bound is not tighter; empty if it is as tight as asked for.
        gap: Certified relative gap of the network.
        gap_seconds: CPU time of the certificate.
    """

    data: str
    num_layers: int
    share: float
    lower: float
    upper: float
    seconds: float
    limited_by: str
    gap: float
    gap_seconds: float


def run(options: Options) -> None:
    """Train, bound, certify and write."""
    cases = [case for case in deep_cases() if case.is_quick or not options.quick]
    num_steps, seconds = (100, 0.5) if options.quick else (600, 10.0)
    rows = []
    for case in cases:
        rows.append(_measured(case, trained(case, num_steps=num_steps, seconds=min(seconds, 2.0)), seconds))
        print(_line(rows[-1]), file=sys.stderr, flush=True)
    facts = machine_facts(("torch", "numpy", "scipy", "scikit-learn"))
    title = "Deep branches: tightness of the dual norm on residuals of trained networks"
    lines = [title, "", *fact_lines(facts), *_NOTES, "", _HEAD, *map(_line, rows), ""]
    options.output.mkdir(parents=True, exist_ok=True)
    options.stem.with_suffix(".txt").write_text("\n".join(lines))
    record = {"title": title, "facts": facts, "notes": _NOTES, "rows": [asdict(row) for row in rows]}
    options.stem.with_suffix(".json").write_text(json.dumps(json_safe(record), indent=1, allow_nan=False) + "\n")
    print("\n".join(lines))


def _measured(case: DeepCase, found: TrainedNet, seconds: float) -> Row:
    """Bound the dual norm of the residual, then certify, each within ``seconds``."""
    oracle = AutoOracle()
    state = oracle.init(found.net.branch_spec, found.inputs)
    begin = time.process_time()
    bound = oracle.bound(state, found.residual, BoundRequest(rtol=_RTOL, deadline=CpuDeadline(seconds)))
    middle = time.process_time()
    problem = TrainingProblem.from_model(found.net, found.inputs, found.targets, loss=found.loss, path_decay=found.path_decay)
    solver = DualSolver(problem)
    solver.prepare()
    certificate = solver.step(ParallelWeights.from_module(found.net), rtol=_RTOL, deadline=CpuDeadline(seconds))
    return Row(
        data=case.name,
        num_layers=case.num_layers,
        share=case.share,
        lower=bound.lower / found.path_decay,
        upper=bound.upper / found.path_decay,
        seconds=middle - begin,
        limited_by=str(bound.stats.get("limited_by", "")),
        gap=certificate.relative_gap,
        gap_seconds=time.process_time() - middle,
    )


_HEAD = (
    f"{'data':<33} {'layers':>6} {'share':>5} {'lower':>7} {'upper':>7} {'upper/lower':>11} {'seconds':>7} "
    f"{'gap':>8} {'seconds':>7}  limited by"
)


def _line(row: Row) -> str:
    return (
        f"{row.data:<33} {row.num_layers:>6} {row.share:>5g} {row.lower:>7.4f} {row.upper:>7.4f} "
        f"{row.upper / row.lower:>11.4f} {row.seconds:>7.1f} {100 * row.gap:>6.2f} % {row.gap_seconds:>7.1f}  {row.limited_by}"
    )


if __name__ == "__main__":
    run_from_command_line("depth_tightness", run, __doc__)
