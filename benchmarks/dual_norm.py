"""Bound dual norms of two-layer ReLU branches: this library against SCIP, complete enumeration and local ascent.

    python -m benchmarks.dual_norm            # everything, about ten minutes of CPU time
    python -m benchmarks.dual_norm --quick    # small sizes only, some 15 seconds

One thread throughout; seconds and limits are CPU time of the process. SCIP is used if ``pyscipopt`` is there (extra ``bench``).
Writes ``dual_norm.txt``, ``dual_norm.json`` and ``dual_norm.png`` (``dual_norm_quick.*``) to ``benchmarks/results``.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numerical libraries start their threads

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks._cpu_deadline import CpuDeadline
from benchmarks._dual_norm_instances import Instance, ReachCase, gaussian_instance, reach_cases
from benchmarks._dual_norm_report import CompareRow, ReachRow, write_report
from benchmarks._dual_norm_rivals import RivalResult, ascended, enumerated, num_cells, solved_by_scip
from benchmarks._suite import RESULTS, Benchmark
from torch_strongdual.certification import DualNormBound
from torch_strongdual.certification.oracles import (
    AbstractTwoLayerOracle,
    AutoTwoLayerOracle,
    BoundRequest,
    BoxBranchAndBound,
    SphereBound,
    SphereProblem,
)
from torch_strongdual.certification.oracles._reduced_state import ReducedState
from torch_strongdual.nn import BranchActivation, BranchSpec

_Row = TypeVar("_Row")

BENCHMARK = Benchmark(title="dual norm bounds against SCIP, enumeration and local ascent", duration="10 minutes")

_GAP = 1e-2
_ENUMERABLE = 50_000  # cells


@dataclass(kw_only=True)
class Settings:
    """What a run may take.

    Args:
        ranks: Dimensions of the comparison.
        sizes: Numbers of samples of the comparison.
        seconds: Limit of this library on one instance of the comparison.
        reach_seconds: Limit on one instance of the reach table.
        scip_seconds: Limit of SCIP on one instance, both signs together.
        scip_total: Limit of SCIP on all instances together.
        is_quick: Whether to leave out the longer reach instances.
    """

    ranks: tuple[int, ...] = tuple(range(2, 11))
    sizes: tuple[int, ...] = (50, 100, 200, 500, 1000)
    seconds: float = 10.0
    reach_seconds: float = 120.0
    scip_seconds: float = 30.0
    scip_total: float = 90.0
    is_quick: bool = False


def main() -> None:
    """Run, print, write."""
    settings, folder = _parsed()
    torch.set_num_threads(1)
    _warm_up((1,) if settings.is_quick else (1, 3))
    compared = _announced(_compare(settings))
    reached = _announced(_reach(settings))
    name = "dual_norm_quick" if settings.is_quick else "dual_norm"
    text = write_report(compared, reached, folder / name, settings=vars(settings))
    print(text)


def _parsed() -> tuple[Settings, Path]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--scip-seconds", type=float, help="CPU limit of SCIP on one instance (30; quick: 3)")
    parser.add_argument("--scip-total", type=float, help="CPU limit of SCIP on all instances together (90; quick: 3)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    args = parser.parse_args()
    settings = Settings()
    if args.quick:
        settings = Settings(
            ranks=(2, 6),
            sizes=(50,),
            seconds=5.0,
            reach_seconds=10.0,
            scip_seconds=3.0,
            scip_total=3.0,
            is_quick=True,
        )
    settings.scip_seconds = args.scip_seconds or settings.scip_seconds
    settings.scip_total = args.scip_total or settings.scip_total
    args.output.mkdir(parents=True, exist_ok=True)
    return settings, args.output


def _announced(rows: Iterator[_Row]) -> list[_Row]:
    found = []
    for row in rows:
        print(row, file=sys.stderr, flush=True)
        found.append(row)
    return found


def _warm_up(output_numbers: tuple[int, ...]) -> None:
    """Compile, and load what is imported late: not part of any measurement."""
    for num_outputs in output_numbers:
        _ours(gaussian_instance(20, 5, num_outputs=num_outputs), _GAP, 5.0, boxes_only=False)


@dataclass(frozen=True, kw_only=True)
class _Timed:
    """A bound, the CPU seconds for it, and those of them without data reduction and local ascent beforehand."""

    bound: DualNormBound
    seconds: float
    search_seconds: float

    @property
    def cells(self) -> int:
        cells = self.bound.stats.get("cells", 0.0)
        return int(cells) if isinstance(cells, float) else 0


class _Stopwatch(AbstractTwoLayerOracle):
    """Another oracle, with the CPU time of its searches taken."""

    def __init__(self, inner: AbstractTwoLayerOracle) -> None:
        self._inner = inner
        self.seconds = 0.0

    def init(self, spec: BranchSpec, inputs: Tensor) -> ReducedState:
        return self._inner.init(spec, inputs)

    def needs_ascent(self, problem: SphereProblem) -> bool:
        return self._inner.needs_ascent(problem)

    def maximise(self, problem: SphereProblem, request: BoundRequest, starts: NDArray[np.float64]) -> SphereBound:
        begin = time.process_time()
        found = self._inner.maximise(problem, request, starts)
        self.seconds += time.process_time() - begin
        return found


def _ours(instance: Instance, rtol: float, seconds: float, *, boxes_only: bool) -> _Timed:
    """The default oracle, or box branch and bound alone."""
    boxes = BoxBranchAndBound(num_threads=1)
    oracle = _Stopwatch(boxes if boxes_only else AutoTwoLayerOracle(boxes=boxes))
    begin = time.process_time()
    state = oracle.init(_spec(instance), instance.inputs)
    found = oracle.bound(state, instance.dual_point, BoundRequest(rtol=rtol, deadline=CpuDeadline(seconds)))
    return _Timed(bound=found, seconds=time.process_time() - begin, search_seconds=oracle.seconds)


def _spec(instance: Instance) -> BranchSpec:
    return BranchSpec(widths=(instance.inputs.shape[1], 1, instance.dual_point.shape[1]), activations=(BranchActivation(),))


def _compare(settings: Settings) -> Iterator[CompareRow]:
    """All sizes, the smaller numbers of samples first. SCIP is spared what contains sizes it has failed at."""
    failed: list[tuple[int, int]] = []
    spent = 0.0
    for n in settings.sizes:
        for d in settings.ranks:
            instance = gaussian_instance(n, d)
            ours = _ours(instance, _GAP, settings.seconds, boxes_only=False)
            rows, duals = instance.inputs.numpy(), instance.dual_point.numpy()[:, 0]
            ascent = ascended(rows, duals)
            scip: RivalResult | None = None
            scip_note = ""
            if any(n >= n_before and d >= d_before for n_before, d_before in failed):
                scip_note = "harder than one it did not solve"
            elif spent >= settings.scip_total:
                scip_note = "no time left"
            else:
                try:
                    scip = solved_by_scip(rows, duals, gap=_GAP, seconds=settings.scip_seconds)
                except ImportError:
                    scip_note = "pyscipopt is not installed"
                else:
                    spent += scip.seconds
                    if not scip.is_complete:
                        failed.append((n, d))
            yield CompareRow(
                n=n,
                d=d,
                upper=ours.bound.upper,
                lower=ours.bound.lower,
                decay=instance.decay,
                seconds=ours.seconds,
                search_seconds=ours.search_seconds,
                cells=ours.cells,
                oracle=str(ours.bound.stats["oracle"]),
                ascent=ascent.lower,
                ascent_seconds=ascent.seconds,
                enumeration=enumerated(rows, duals) if d in (2, 3) and num_cells(n, d) <= _ENUMERABLE else None,
                scip=scip,
                scip_note=scip_note,
            )


def _reach(settings: Settings) -> Iterator[ReachRow]:
    for case in reach_cases():
        if case.is_quick or not settings.is_quick:
            yield _reached(case, settings.reach_seconds)


def _reached(case: ReachCase, seconds: float) -> ReachRow:
    instance = case.make()
    ours = _ours(instance, case.rtol, seconds, boxes_only=True)
    return ReachRow(
        name=case.name,
        rtol=case.rtol,
        upper=ours.bound.upper,
        lower=ours.bound.lower,
        decay=instance.decay,
        seconds=ours.seconds,
        search_seconds=ours.search_seconds,
        cells=ours.cells,
        prototype=case.prototype,
        goal=math.nan if case.goal is None else case.goal,
        limited_by=str(ours.bound.stats.get("limited_by", "")),
    )


if __name__ == "__main__":
    main()
