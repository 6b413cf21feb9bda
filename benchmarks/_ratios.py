"""Times as ratios to a reference of the same run: candidates and reference take turns, and the median ratio counts.

A ratio of two times taken right after each other hardly depends on what else the machine does, unlike the times themselves.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.utils.benchmark import Timer

__all__ = ["Ratio", "gradient_step", "interleaved_ratios"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How long a candidate takes, in units of a reference.

    Args:
        candidate: Its name.
        reference: The name of what it is compared with.
        median: Median over the repetitions of time of the candidate / time of the reference; below 1 is faster.
        low: First quartile of these ratios.
        high: Third quartile.
        seconds: Median time of one call of the candidate.
        reference_seconds: Median time of one call of the reference.
        repetitions: How many times each was measured, taking turns.
        num_threads: Threads torch may use.
        clock: ``"CPU time"`` of the process, ``"wall clock"``, or ``"device synchronised"``.
    """

    candidate: str
    reference: str
    median: float
    low: float
    high: float
    seconds: float
    reference_seconds: float
    repetitions: int
    num_threads: int
    clock: str


def interleaved_ratios(
    calls: Mapping[str, Callable[[], object]],
    reference: str,
    *,
    repetitions: int = 11,
    num_threads: int = 1,
    seconds: float = 0.1,
    device: str = "cpu",
) -> dict[str, Ratio]:
    """Measure all calls in turn, several times, and compare each with the reference.

    One thread on the CPU is measured in CPU time of the process, which other processes hardly disturb; several threads in
    wall clock time; other devices with synchronisation.

    Args:
        calls: What to run, by name, the reference included. Each turn begins with two calls that are not counted.
        reference: Which of them the others are divided by.
        repetitions: At least 7.
        num_threads: Threads torch may use.
        seconds: Time of one measurement at least; as many calls as that takes are averaged.
        device: Where the calls compute.

    Returns:
        One ratio for each call but the reference.
    """
    if repetitions < 7:
        raise ValueError(f"`repetitions` is {repetitions}; expected at least 7, or the median says little.")
    clock = _clock(num_threads, device)
    timers = {name: _timer(call, clock, num_threads) for name, call in calls.items()}
    counts = {name: _calls_within(timer, seconds) for name, timer in timers.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(repetitions):
        order = list(timers) if repetition % 2 == 0 else list(reversed(timers))  # a drift favours nobody
        for name in order:
            times[name].append(timers[name].timeit(counts[name]).median)
    return {
        name: _ratio(name, own, reference, times[reference], num_threads, clock)
        for name, own in times.items()
        if name != reference
    }


def _clock(num_threads: int, device: str) -> str:
    if device != "cpu":
        return "device synchronised"
    return "CPU time" if num_threads == 1 else "wall clock"


def _timer(call: Callable[[], object], clock: str, num_threads: int) -> Timer:
    if clock == "CPU time":
        return Timer("call()", globals={"call": call}, num_threads=num_threads, timer=time.process_time)
    return Timer("call()", globals={"call": call}, num_threads=num_threads)  # synchronises where there is a device


def _calls_within(timer: Timer, seconds: float) -> int:
    return max(1, round(seconds / max(timer.timeit(1).median, 1e-9)))


def _ratio(name: str, own: list[float], reference: str, others: list[float], num_threads: int, clock: str) -> Ratio:
    low, median, high = statistics.quantiles([t / r for t, r in zip(own, others, strict=True)], n=4, method="inclusive")
    return Ratio(
        candidate=name,
        reference=reference,
        median=median,
        low=low,
        high=high,
        seconds=statistics.median(own),
        reference_seconds=statistics.median(others),
        repetitions=len(own),
        num_threads=num_threads,
        clock=clock,
    )


def gradient_step(module: torch.nn.Module, inputs: torch.Tensor) -> Callable[[], None]:
    """Forward and backward pass of ``module`` on ``inputs``, as a call to be measured; gradients are made anew each time."""
    seed = torch.randn_like(module(inputs))

    def step() -> None:
        for parameter in module.parameters():
            parameter.grad = None
        module(inputs).backward(seed)

    return step
