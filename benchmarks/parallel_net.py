"""Forward and backward pass of ParallelNet against dense networks and a loop over branches, and the memory it keeps.

    python -m benchmarks.parallel_net            # about ten minutes
    python -m benchmarks.parallel_net --quick    # the first rows, smaller, one thread, some 10 seconds

Writes ``parallel_net.txt`` and ``parallel_net.json`` to ``benchmarks/results`` (``--output``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from benchmarks._branch_loop import BranchLoop
from benchmarks._ratios import gradient_step, interleaved_ratios
from benchmarks._report import RatioReport, RatioRow
from benchmarks._suite import Benchmark, Options, run_from_command_line
from torch_strongdual.nn import GatedReLU, ParallelNet

BENCHMARK = Benchmark(
    title="ParallelNet against dense networks and loops over branches", duration="10 minutes", devices=("cpu", "cuda")
)

_NOTES = [
    "One call is a forward and a backward pass in float32, gradients of all parameters included.",
    "GEMM chain: dense nn.Linear layers without activations, each with as many operations as that layer of all branches.",
    "loop: the branches as nn.Sequential one by one, outputs added.",
    "all at once: ParallelNet(..., chunk_size=None); chunks: the default, large activations in chunks of branches.",
]


def run(options: Options) -> None:
    """Measure and write."""
    torch.manual_seed(0)
    report = RatioReport(title="ParallelNet: time of forward and backward pass", notes=list(_NOTES))
    for num_threads in options.thread_counts:
        for case in _CASES[:3] if options.quick else _CASES:
            report.rows += case(options, num_threads)
    print(report.write(options.stem, device=options.device))


def _deep(options: Options, num_threads: int) -> list[RatioRow]:
    work = "K=64, 784-64-64-10, B=1024"
    calls = _deep_calls((784, 64, 64, 10), 64, 1024, options)
    return _rows(work, calls, "GEMM chain", {"ParallelNet": 1.12, "loop": None}, options, num_threads)


def _many_small(options: Options, num_threads: int) -> list[RatioRow]:
    num_branches = 64 if options.quick else 512
    work = f"K={num_branches}, 64-32-32-1, B=256"
    calls = _deep_calls((64, 32, 32, 1), num_branches, 256, options)
    rows = []
    for reference, target in (("GEMM chain", 1.9), ("loop", 0.25)):
        pair = {name: calls[name] for name in ("ParallelNet", reference)}
        rows += _rows(work, pair, reference, {"ParallelNet": target}, options, num_threads)
    return rows


def _single_units(options: Options, num_threads: int) -> list[RatioRow]:
    inputs = torch.randn(442, 10, device=options.device)
    net = ParallelNet(nn.Linear(10, 1), nn.ReLU(), nn.Linear(1, 1), num_branches=500, device=options.device)
    calls = {
        "ParallelNet": gradient_step(net, inputs),
        "nn.Sequential": gradient_step(_sequential((10, 500, 1), options.device, bias=True), inputs),
    }
    return _rows("K=500, 10-1-1, B=442", calls, "nn.Sequential", {"ParallelNet": 1.05}, options, num_threads)


def _few_wide(options: Options, num_threads: int) -> list[RatioRow]:
    work = "K=8, 784-512-512-10, B=1024"
    calls = _deep_calls((784, 512, 512, 10), 8, 1024, options)
    return _rows(work, calls, "GEMM chain", {"ParallelNet": 1.05, "loop": None}, options, num_threads)


def _gated(options: Options, num_threads: int) -> list[RatioRow]:
    num_samples = 64 if options.quick else 1024
    inputs = torch.randn(num_samples, 784, device=options.device)
    calls = {}
    for name, activation in (("gated ReLU", GatedReLU(784)), ("ReLU", nn.ReLU())):
        layers = (nn.Linear(784, 64), activation, nn.Linear(64, 10))
        calls[name] = gradient_step(ParallelNet(*layers, num_branches=64, device=options.device), inputs)
    return _rows(f"K=64, 784-64-10, B={num_samples}", calls, "ReLU", {"gated ReLU": 1.1}, options, num_threads)


def _chunks(options: Options, num_threads: int) -> list[RatioRow]:
    inputs = torch.randn(1024, 64, device=options.device)
    kinds: dict[str, dict[str, Any]] = {
        "all at once": {"chunk_size": None},
        "chunks": {},
        "chunks, recomputed": {"recompute": True},
    }
    calls = {}
    for name, kind in kinds.items():
        layers = _sequential((64, 32, 32, 1), options.device)
        calls[name] = gradient_step(ParallelNet(*layers, num_branches=512, **kind), inputs)
    targets = {"chunks": None, "chunks, recomputed": None}
    return _rows("K=512, 64-32-32-1, B=1024", calls, "all at once", targets, options, num_threads)


_CASES = (_single_units, _many_small, _gated, _deep, _few_wide, _chunks)


def _rows(
    work: str,
    calls: dict[str, Callable[[], None]],
    reference: str,
    targets: Mapping[str, float | None],
    options: Options,
    num_threads: int,
) -> list[RatioRow]:
    ratios = interleaved_ratios(
        calls,
        reference,
        repetitions=options.repetitions,
        seconds=options.turn_seconds,
        num_threads=num_threads,
        device=options.device,
    )
    return [RatioRow(work=work, ratio=ratios[name], target=target) for name, target in targets.items()]


def _deep_calls(
    widths: tuple[int, int, int, int], num_branches: int, batch: int, options: Options
) -> dict[str, Callable[[], None]]:
    """ParallelNet, the chain of the same operations a layer, and the loop; no biases."""
    inputs = torch.randn(batch, widths[0], device=options.device)
    net = ParallelNet(*_sequential(widths, options.device), num_branches=num_branches)
    wide = (widths[0], num_branches * widths[1], widths[2], num_branches * widths[3])
    chain = nn.Sequential(*[layer for layer in _sequential(wide, options.device) if isinstance(layer, nn.Linear)])
    return {
        "ParallelNet": gradient_step(net, inputs),
        "GEMM chain": gradient_step(chain, inputs),
        "loop": gradient_step(BranchLoop(net), inputs),
    }


def _sequential(widths: tuple[int, ...], device: str, *, bias: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out, bias=bias, device=device), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


if __name__ == "__main__":
    run_from_command_line("parallel_net", run, __doc__)
