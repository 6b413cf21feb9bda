"""One step of the path optimizers against torch's own on the same parameters.

    python -m benchmarks.optimizers            # about two minutes
    python -m benchmarks.optimizers --quick    # the first network only, on small batches

Writes ``optimizers.txt`` and ``optimizers.json`` to ``benchmarks/results`` (``--output``).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from benchmarks._ratios import Ratio, gradient_step, interleaved_ratios
from benchmarks._report import RatioReport, RatioRow
from benchmarks._suite import Benchmark, Options, run_from_command_line
from torch_strongdual.nn import ParallelNet
from torch_strongdual.optim import PathAdamW, PathSGD

BENCHMARK = Benchmark(
    title="a step of PathAdamW and PathSGD against AdamW and SGD", duration="2 minutes", devices=("cpu", "cuda")
)

_NOTES = [
    "One call is one step with gradients that stay the same, in float32; the path penalty is on, with exact zeros.",
    "Rows `training step`: forward and backward pass on the batch named, then the step, PathSGD or PathAdamW against torch's.",
    "PathSGD goes through the weights of a branch twice, since how much they are shortened depends on all of them. The second "
    "time they are in the cache: that is what it costs more than SGD, less in comparison the slower the memory is.",
]
_NETWORKS = (("K=64, 784-64-64-10", (784, 64, 64, 10), 64), ("K=512, 64-32-32-1", (64, 32, 32, 1), 512))
_BATCH = 256
_PATH_DECAY = 1e-3
_LR = 1e-4


def run(options: Options) -> None:
    """Measure and write."""
    report = RatioReport(title="Optimizers: time of a step", notes=list(_NOTES))
    for name, widths, num_branches in _NETWORKS[:1] if options.quick else _NETWORKS:
        for reference, ours, target in _pairs(options):
            report.rows.append(_row(name, widths, num_branches, reference, ours, target, options))
        for reference, ours, _ in _pairs(options)[: 1 if options.quick else 2]:
            report.rows.append(
                _row(name, widths, num_branches, reference, ours, None, options, batch=32 if options.quick else _BATCH)
            )
    print(report.write(options.stem, device=options.device))


_Made = tuple[str, Callable[[ParallelNet], torch.optim.Optimizer]]


def _pairs(options: Options) -> list[tuple[_Made, _Made, float | None]]:
    """Reference, candidate, and the ratio asked for."""
    is_cpu = options.device == "cpu"
    adamw = {"foreach": True} if is_cpu else {"fused": True}
    return [
        (
            (f"AdamW({_text(adamw)})", _stock(torch.optim.AdamW, **adamw)),
            ("PathAdamW", _path(PathAdamW)),
            1.15 if is_cpu else 1.3,
        ),
        (
            ("SGD(momentum=0.9)", _stock(torch.optim.SGD, momentum=0.9)),
            ("PathSGD(momentum=0.9)", _path(PathSGD, momentum=0.9)),
            1.15,
        ),
        (("SGD", _stock(torch.optim.SGD)), ("PathSGD", _path(PathSGD)), 1.15),
    ]


def _stock(kind: Callable[..., torch.optim.Optimizer], **options: Any) -> Callable[[ParallelNet], torch.optim.Optimizer]:
    return lambda net: kind(net.parameters(), lr=_LR, **options)


def _path(kind: Callable[..., torch.optim.Optimizer], **options: Any) -> Callable[[ParallelNet], torch.optim.Optimizer]:
    return lambda net: kind(net.path_param_groups(path_decay=_PATH_DECAY), lr=_LR, **options)


def _text(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _row(
    name: str,
    widths: tuple[int, ...],
    num_branches: int,
    reference: _Made,
    ours: _Made,
    target: float | None,
    options: Options,
    *,
    batch: int = 0,
) -> RatioRow:
    calls = {title: _call(widths, num_branches, make, options, batch) for title, make in (reference, ours)}
    ratio: Ratio = interleaved_ratios(
        calls, reference[0], repetitions=options.repetitions, seconds=options.turn_seconds, device=options.device
    )[ours[0]]
    work = f"{name}, training step, B={batch}" if batch else f"{name}, step"
    return RatioRow(work=work, ratio=ratio, target=target)


def _call(
    widths: tuple[int, ...],
    num_branches: int,
    make: Callable[[ParallelNet], torch.optim.Optimizer],
    options: Options,
    batch: int,
) -> Callable[[], None]:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out, bias=False), nn.ReLU()]
    net = ParallelNet(*layers[:-1], num_branches=num_branches).to(options.device)
    optimizer = make(net)
    if batch:
        gradients = gradient_step(net, torch.randn(batch, widths[0], device=options.device))
        return lambda: (gradients(), optimizer.step(), None)[-1]
    for parameter in net.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    return lambda: optimizer.step()


if __name__ == "__main__":
    run_from_command_line("optimizers", run, __doc__)
