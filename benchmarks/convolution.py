"""Convolutional branches of ParallelNet against one grouped nn.Sequential and a loop over branches.

    python -m benchmarks.convolution            # about five minutes
    python -m benchmarks.convolution --quick    # the first network, one thread, some 10 seconds

Writes ``convolution.txt`` and ``convolution.json`` to ``benchmarks/results`` (``--output``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks._branch_loop import BranchLoop
from benchmarks._ratios import gradient_step, interleaved_ratios
from benchmarks._report import RatioReport, RatioRow
from benchmarks._suite import Benchmark, Options, run_from_command_line
from torch_strongdual.nn import ParallelNet

BENCHMARK = Benchmark(
    title="convolutional branches against one grouped nn.Sequential and a loop", duration="5 minutes", devices=("cpu", "cuda")
)

_NUM_BRANCHES = 64
_NOTES = [
    "One call is a forward and a backward pass in float32, gradients of all parameters included; K = 64 branches.",
    "grouped: one nn.Sequential as wide as all branches: the first convolution shares its input, later ones have groups=K.",
    "loop: the branches as nn.Sequential one by one, outputs added.",
    "all at once: ParallelNet(..., chunk_size=None); the default evaluates large activations in chunks of branches.",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """A branch, the same network in one nn.Sequential, and its inputs.

    Args:
        work: In the table.
        branch: Makes the layers of a branch.
        grouped: Makes the layers of all branches for a number of them.
        shape: Of the inputs.
        is_large: Whether activations are large enough for chunks of branches.
    """

    work: str
    branch: Callable[[], Sequence[nn.Module]]
    grouped: Callable[[int], Sequence[nn.Module]]
    shape: tuple[int, ...]
    is_large: bool = False


_CASES = (
    _Case(
        work="Conv2d(1,1,2)-ReLU-pool-10, 8x8, B=300",
        branch=lambda: [nn.Conv2d(1, 1, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 10)],
        grouped=lambda k: [nn.Conv2d(1, k, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(k, 10)],
        shape=(300, 1, 8, 8),
    ),
    _Case(
        work="Conv2d(3,4,3)-ReLU-max-Conv2d(4,4,3)-ReLU-pool-10, 16x16, B=32",
        branch=lambda: [
            *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)),
        ],
        grouped=lambda k: [
            *(nn.Conv2d(3, 4 * k, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(4 * k, 4 * k, 3, groups=k), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * k, 10)),
        ],
        shape=(32, 3, 16, 16),
        is_large=True,
    ),
    _Case(
        work="Conv1d(1,2,5)-ReLU-pool-1, length 64, B=256",
        branch=lambda: [nn.Conv1d(1, 2, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2, 1)],
        grouped=lambda k: [nn.Conv1d(1, 2 * k, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2 * k, 1)],
        shape=(256, 1, 64),
    ),
    _Case(
        work="Conv2d(1,4,3)-ReLU-pool-10, 28x28, B=64",
        branch=lambda: [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)],
        grouped=lambda k: [nn.Conv2d(1, 4 * k, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * k, 10)],
        shape=(64, 1, 28, 28),
    ),
)


def run(options: Options) -> None:
    """Measure and write."""
    torch.manual_seed(0)
    report = RatioReport(title="Convolutional branches: time of forward and backward pass", notes=list(_NOTES))
    for num_threads in options.thread_counts:
        for case in _CASES[:1] if options.quick else _CASES:
            report.rows += _rows(case, options, num_threads)
    print(report.write(options.stem, device=options.device))


def _rows(case: _Case, options: Options, num_threads: int) -> list[RatioRow]:
    inputs = torch.randn(case.shape, device=options.device)
    net = ParallelNet(*case.branch(), num_branches=_NUM_BRANCHES, device=options.device)
    calls = {
        "ParallelNet": gradient_step(net, inputs),
        "grouped": gradient_step(nn.Sequential(*case.grouped(_NUM_BRANCHES)).to(options.device), inputs),
        "loop": gradient_step(BranchLoop(net), inputs),
    }
    references: list[tuple[str, float | None]] = [("grouped", 1.15), ("loop", 1 / 3)]
    if case.is_large:
        at_once = ParallelNet(*case.branch(), num_branches=_NUM_BRANCHES, chunk_size=None, device=options.device)
        calls["all at once"] = gradient_step(at_once, inputs)
        references.append(("all at once", None))
    rows = []
    for reference, target in references:
        pair = {name: calls[name] for name in ("ParallelNet", reference)}
        ratios = interleaved_ratios(
            pair,
            reference,
            repetitions=options.repetitions,
            seconds=options.turn_seconds,
            num_threads=num_threads,
            device=options.device,
        )
        rows.append(RatioRow(work=case.work, ratio=ratios["ParallelNet"], target=target))
    return rows


if __name__ == "__main__":
    run_from_command_line("convolution", run, __doc__)
