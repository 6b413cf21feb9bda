"""Ctrl-C at any moment: an interrupt raised at calls spread over the whole run, from the first to the last."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from itertools import pairwise
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.certification import (
    DualSolver,
    OptimizationResult,
    OptimizationStop,
    optimize_to_certificate,
    path_decay_path,
)
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import GatedReLU, ParallelNet

_NUM_MOMENTS = 12


def problem(kind: str) -> tuple[ParallelNet, Tensor, Tensor]:
    torch.manual_seed(8)
    middle = nn.ReLU() if kind == "relu" else GatedReLU(2)
    net = ParallelNet(nn.Linear(2, 1, bias=False), middle, nn.Linear(1, 1, bias=False), num_branches=3, dtype=torch.float64)
    return net, torch.randn(9, 2, dtype=torch.float64), torch.randn(9, 1, dtype=torch.float64)


def calls_of_the_package(run: Callable[[], Any], *, interrupt_at: int | None) -> tuple[Any, int]:
    """Run with a KeyboardInterrupt at one call of a function of this package, counted from when the run begins."""
    count = 0

    def watch(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        if event != "call" or "torch_strongdual" not in frame.f_code.co_filename:
            return
        if frame.f_code.co_flags & inspect.CO_GENERATOR:  # one that is being closed would swallow it
            return
        if count == 0 and frame.f_code.co_name != "to_its_end":
            return
        count += 1
        if count == interrupt_at:
            raise KeyboardInterrupt

    sys.setprofile(watch)
    try:
        return run(), count
    finally:
        sys.setprofile(None)


def moments(run: Callable[[], Any]) -> list[int]:
    run()  # imports and compiles
    _, number = calls_of_the_package(run, interrupt_at=None)
    early, late = range(1, 20, 3), range(number - 20, number + 1, 3)  # where the loop is not running
    return sorted({*early, *torch.linspace(20, number - 21, _NUM_MOMENTS).int().tolist(), *late})


@pytest.mark.parametrize("kind", ["relu", "gated"])
def test_an_interrupt_at_any_moment_returns_the_best_network_so_far(kind: str) -> None:
    net, inputs, targets = problem(kind)

    def run() -> OptimizationResult:
        return optimize_to_certificate(net, inputs, targets, loss=HalfSquaredLoss(), path_decay=0.3, rtol=1e-4)

    stops = []
    for moment in moments(run):
        result, _ = calls_of_the_package(run, interrupt_at=moment)
        certificate = result.certificate
        value = HalfSquaredLoss()(result.net(inputs), targets) + 0.3 * result.net.path_penalty()
        assert certificate.primal_value == pytest.approx(value.item(), rel=1e-12)
        assert certificate.dual_bound <= certificate.primal_value <= result.history[-1].objective * (1 + 1e-12)
        assert all(later.objective <= earlier.objective for earlier, later in pairwise(result.history))
        stops.append(result.stop)
    assert set(stops) <= {OptimizationStop.INTERRUPTED, OptimizationStop.CERTIFIED}
    assert stops.count(OptimizationStop.INTERRUPTED) > 0.9 * len(stops)


def test_an_interrupt_at_any_moment_of_a_path_returns_what_is_done() -> None:
    net, inputs, targets = problem("gated")

    def run() -> Any:
        return path_decay_path(net, inputs, targets, loss=HalfSquaredLoss(), path_decays=(2.0, 1.0, 0.5), rtol=1e-4)

    numbers = []
    for moment in moments(run):
        table, _ = calls_of_the_package(run, interrupt_at=moment)
        assert all(row.result.stop is OptimizationStop.CERTIFIED for row in table.rows[:-1])
        numbers.append(len(table.rows))
    assert numbers == sorted(numbers)
    assert set(numbers) == {1, 2, 3}


def test_a_second_interrupt_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    net, inputs, targets = problem("gated")

    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DualSolver, "assess", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimize_to_certificate(net, inputs, targets, loss=HalfSquaredLoss(), path_decay=0.3)
