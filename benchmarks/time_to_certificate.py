"""Train to the global optimum: this library against L-BFGS, Adam, sampled gates in CVXPY, and PyPI's pyscnn.

    python -m benchmarks.time_to_certificate            # everything, about twenty minutes of CPU time
    python -m benchmarks.time_to_certificate --quick    # three instances and a few goals, under a minute
    python -m benchmarks.time_to_certificate --ours     # this library again, other methods' rows kept: three minutes

One thread throughout; seconds and limits are CPU time of the process. ``pyscnn`` takes part if it is installed (extra
``bench``; ``pip install --no-deps pyscnn linalg_backends opt_einsum`` spares torchvision, which it does not use). Writes
``time_to_certificate.txt``, ``.json`` and ``.png`` (``time_to_certificate_quick.*``) to ``benchmarks/results``.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numerical libraries start their threads

import sys
from collections.abc import Callable
from functools import partial

import torch

from benchmarks._cpu_deadline import CpuDeadline
from benchmarks._race_goals import goals, pursued
from benchmarks._race_instances import Case, RaceInstance, race_cases
from benchmarks._race_kept import KeptResults, kept_results
from benchmarks._race_ours import optimised
from benchmarks._race_report import InstanceResult, MethodResult, write_report
from benchmarks._race_rivals import adam, full_batch_lbfgs, pyscnn, sampled_gates
from benchmarks._race_trace import Trace
from benchmarks._suite import Benchmark, Options, run_from_command_line
from torch_strongdual.certification import Deadline

BENCHMARK = Benchmark(title="training to the global optimum against other methods", duration="20 minutes")

_RTOL = 1e-4
_QUICK_SECONDS = 0.5


def run(options: Options, *, ours_only: bool = False) -> None:
    """Race, pursue the goals, print, write; ``ours_only`` keeps the rows of the other methods in the results there are."""
    torch.set_num_threads(1)
    _warm_up()
    cases = [case for case in race_cases() if case.is_quick or not options.quick]
    kept = kept_results(options.stem.with_suffix(".json")) if ours_only else None
    results = [_raced(case, _QUICK_SECONDS if options.quick else case.seconds, kept) for case in cases]
    reached = []
    for goal in goals():
        if goal.is_quick or not options.quick:
            reached.append(pursued(goal))
            print(reached[-1], file=sys.stderr, flush=True)
    options.stem.parent.mkdir(parents=True, exist_ok=True)
    settings: dict[str, object] = {"quick": options.quick, "rtol": _RTOL}
    if kept is not None:
        settings["other_methods_measured"] = kept.measured
    print(write_report(results, reached, options.stem, settings=settings))


def _raced(case: Case, seconds: float, kept: KeptResults | None) -> InstanceResult:
    instance = case.make()
    if kept is not None:
        return kept.with_row(case.name, _measured(_ours, instance, kept.instances[case.name].limit))
    methods = [_measured(method, instance, seconds) for method in (_ours, full_batch_lbfgs, adam, sampled_gates, pyscnn)]
    return InstanceResult(name=case.name, limit=seconds, optimum=instance.optimum, methods=methods)


def _measured(method: Callable[[RaceInstance, Deadline], Trace], instance: RaceInstance, seconds: float) -> MethodResult:
    trace = method(instance, CpuDeadline(seconds))
    points = trace.points(instance)
    last = f"{points[-1].objective:.8g}, bound {points[-1].bound:.8g}" if points else ""
    print(f"{instance.name}: {trace.method}: {last} {trace.note}", file=sys.stderr, flush=True)
    return MethodResult(method=trace.method, points=points, seconds=trace.seconds, note=trace.note)


def _ours(instance: RaceInstance, deadline: Deadline) -> Trace:
    return optimised(instance, deadline, rtol=_RTOL)


def _warm_up() -> None:
    """Compile, and load what is imported late: not part of any measurement."""
    instance = next(case for case in race_cases() if case.is_quick).make()
    for method in (_ours, full_batch_lbfgs, adam, sampled_gates, pyscnn):
        method(instance, CpuDeadline(0.2))


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if argument != "--ours"]
    chosen = partial(run, ours_only="--ours" in sys.argv)
    run_from_command_line("time_to_certificate", chosen, __doc__, given)
