"""What the benchmarks have in common: how they are found, run and told what to do.

A benchmark is a module ``benchmarks/NAME.py`` with a constant ``BENCHMARK`` of type :class:`Benchmark`. It runs as
``python -m benchmarks.NAME`` with the options below and writes ``NAME.txt`` and ``NAME.json`` into the folder given.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Benchmark", "Options", "find_benchmarks", "run_from_command_line"]

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """What the suite knows of a benchmark.

    Args:
        title: What it measures, in a few words.
        duration: How long all of it takes, in words; the quick form takes seconds.
        devices: Where it can run: ``"cpu"``, ``"cuda"``.
    """

    title: str
    duration: str
    devices: tuple[str, ...] = ("cpu",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run is told.

    Args:
        name: Of the benchmark: that of its results.
        quick: Whether to take seconds, not minutes: fewer sizes, fewer repetitions.
        output: Folder for the results.
        device: Where to compute.
    """

    name: str
    quick: bool = False
    output: Path = RESULTS
    device: str = "cpu"

    @property
    def repetitions(self) -> int:
        """How often to measure, taking turns."""
        return 7 if self.quick else 11

    @property
    def turn_seconds(self) -> float:
        """How long one turn of a call takes at least."""
        return 0.02 if self.quick else 0.1

    @property
    def thread_counts(self) -> tuple[int, ...]:
        """One thread, and two where that says something: not in quick runs, on other devices or on a busy machine.

        CPU time of one thread hardly depends on other processes; two threads are measured by the wall clock, which does.
        """
        is_busy = os.getloadavg()[0] > (os.cpu_count() or 1) - 1
        return (1,) if self.quick or self.device != "cpu" or is_busy else (1, 2)

    @property
    def stem(self) -> Path:
        """Path of the results without ending: quick runs and other devices have files of their own."""
        ending = ("" if self.device == "cpu" else f"_{self.device}") + ("_quick" if self.quick else "")
        return self.output / f"{self.name}{ending}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that all benchmarks and the suite understand."""
    parser.add_argument("--quick", action="store_true", help="small sizes and few repetitions: seconds instead of minutes")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default: cpu)")


def run_from_command_line(
    name: str, run: Callable[[Options], None], description: str | None, arguments: Sequence[str] | None = None
) -> None:
    """Read the options and run.

    Args:
        name: Of the module, without its package.
        run: Does the work and writes the results.
        description: Shown by ``--help``: the docstring of the module.
        arguments: The command line if ``None``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here.")
    run(Options(name=name, quick=given.quick, output=given.output, device=given.device))


def find_benchmarks() -> dict[str, Benchmark]:
    """All benchmarks of the suite, by name, in alphabetical order."""
    found = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if not module.name.startswith("_"):
            benchmark = vars(importlib.import_module(f"benchmarks.{module.name}")).get("BENCHMARK")
            if isinstance(benchmark, Benchmark):
                found[module.name] = benchmark
    return dict(sorted(found.items()))
