"""How tight each two-layer oracle gets in a given time, by rank and number of samples: what AutoTwoLayerOracle chooses by.

    python -m benchmarks.oracle_costs            # about twenty minutes of CPU time
    python -m benchmarks.oracle_costs --quick    # one size, seconds

One thread; limits are CPU time of the process. ``looseness`` is the proven upper bound over the largest value known, less one.
Writes ``oracle_costs.txt`` and ``oracle_costs.json`` to ``benchmarks/results``. The table in
``torch_strongdual/certification/oracles/_choice/measured_looseness.py`` holds its rows; a test compares them.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numerical libraries start their threads

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from benchmarks._cpu_deadline import CpuDeadline
from benchmarks._dual_norm_instances import Instance, gaussian_instance
from benchmarks._facts import fact_lines, json_safe, machine_facts
from benchmarks._suite import Benchmark, Options, run_from_command_line
from torch_strongdual.certification.oracles import (
    AbstractTwoLayerOracle,
    BoundRequest,
    BoxBranchAndBound,
    DoublyNonnegativeRelaxation,
    PolynomialSandwich,
    QuadraticRelaxation,
)
from torch_strongdual.nn import BranchActivation, BranchSpec

BENCHMARK = Benchmark(title="tightness of each two-layer oracle by rank, samples and time", duration="20 minutes")

_RANKS, _SIZES, _SECONDS = (8, 9, 10, 12), (50, 100, 200, 500, 1000), (4.0, 16.0)
_BOX_RANK = 6  # only boxes are measured there: it is for data of higher rank with few axes that count
_SMALLEST_GAP = 1e-2  # no bound is asked to be tighter


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """What one oracle reached.

    Args:
        oracle: Name of its class.
        rank: Of the inputs.
        num_samples: Rows.
        allowed: CPU seconds it was given.
        seconds: CPU seconds it took.
        upper: Proven.
        lower: Largest value that any oracle attained.
    """

    oracle: str
    rank: int
    num_samples: int
    allowed: float
    seconds: float
    upper: float
    lower: float

    @property
    def looseness(self) -> float:
        """Zero for an exact bound."""
        return self.upper / self.lower - 1.0 if math.isfinite(self.upper) else math.inf


def run(options: Options) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    ranks, sizes, seconds = ((8,), (50,), (0.5,)) if options.quick else (_RANKS, _SIZES, _SECONDS)
    _measured(gaussian_instance(20, 5), BoxBranchAndBound(num_threads=1), 5.0)  # compile: not part of any measurement
    rows = [row for rank in ranks for size in sizes for row in _size(rank, size, seconds)]
    facts = machine_facts(("torch", "numpy", "numba"))
    text = "\n".join([BENCHMARK.title.capitalize(), "", *fact_lines(facts), *_NOTES, "", *_table(rows), ""])
    options.stem.parent.mkdir(parents=True, exist_ok=True)
    options.stem.with_suffix(".txt").write_text(text)
    record = {"title": BENCHMARK.title, "facts": facts, "rows": [asdict(row) for row in rows]}
    options.stem.with_suffix(".json").write_text(json.dumps(json_safe(record), indent=1, allow_nan=False) + "\n")
    print(text)


_NOTES = (
    "One thread; limits are CPU time. looseness: proven upper bound over the largest value any oracle attained, less one;",
    "1 % was asked for. Dual points are residuals of trained networks of 200 neurons at 0.05 beta_max, Gaussian inputs.",
)


def _size(rank: int, size: int, seconds: tuple[float, ...]) -> Iterator[CostRow]:
    instance = gaussian_instance(size, rank)
    found = []
    others = [DoublyNonnegativeRelaxation(), PolynomialSandwich(), QuadraticRelaxation()] if rank > _BOX_RANK else []
    for oracle in (BoxBranchAndBound(num_threads=1), *others):
        for allowed in seconds:
            if isinstance(oracle, DoublyNonnegativeRelaxation) and oracle.limits(rank, size, 1) is not None:
                continue
            taken, upper, lower = _measured(instance, oracle, allowed)
            found.append((type(oracle).__name__, allowed, taken, upper, lower))
            print(rank, size, *found[-1], flush=True)
            if upper <= (1.0 + _SMALLEST_GAP) * lower or taken < 0.5 * allowed:
                break  # more time changes nothing
    best = max(lower for *_, lower in found)
    for name, allowed, taken, upper, _ in found:
        yield CostRow(oracle=name, rank=rank, num_samples=size, allowed=allowed, seconds=taken, upper=upper, lower=best)


def _measured(instance: Instance, oracle: AbstractTwoLayerOracle, allowed: float) -> tuple[float, float, float]:
    """CPU seconds, upper, lower."""
    spec = BranchSpec(widths=(instance.inputs.shape[1], 1, 1), activations=(BranchActivation(),))
    start = time.process_time()
    state = oracle.init(spec, instance.inputs)
    request = BoundRequest(rtol=_SMALLEST_GAP, deadline=CpuDeadline(allowed))
    bound = oracle.bound(state, instance.dual_point, request)
    return time.process_time() - start, bound.upper, bound.lower


def _table(rows: list[CostRow]) -> list[str]:
    head = f"{'rank':>4} {'samples':>7}  {'oracle':<28} {'allowed s':>9} {'seconds':>8} {'looseness':>9}"
    body = [
        f"{row.rank:4d} {row.num_samples:7d}  {row.oracle:<28} {row.allowed:9.0f} {row.seconds:8.2f} "
        f"{100 * row.looseness:7.2f} %"
        for row in rows
    ]
    return [head, *body]


if __name__ == "__main__":
    run_from_command_line("oracle_costs", run, __doc__)
