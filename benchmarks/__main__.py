"""Run the benchmark suite: each benchmark in a process of its own, results as text and JSON in one folder.

python -m benchmarks                    # all of it
python -m benchmarks --quick            # two minutes
python -m benchmarks parallel_net       # one of them
python -m benchmarks --list
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks._suite import add_arguments, find_benchmarks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; the number of benchmarks that failed."""
    benchmarks = find_benchmarks()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(benchmarks)} (default: all)")
    parser.add_argument("--list", action="store_true", help="say what there is")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in benchmarks]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(benchmarks)}")
    if options.list:
        for name, benchmark in benchmarks.items():
            print(f"{name:<22} {benchmark.title} ({benchmark.duration}; {', '.join(benchmark.devices)})")
        return 0
    names = options.names or [name for name, benchmark in benchmarks.items() if options.device in benchmark.devices]
    failed = [name for name in names if not _run(name, options)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


def _run(name: str, options: argparse.Namespace) -> bool:
    """Run one benchmark in a fresh process, so that none inherits another's threads, caches or compiled code."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--output", str(options.output)]
    command += ["--quick"] * options.quick + ["--device", options.device] * (options.device != "cpu")
    print(f"[bench] {name}", file=sys.stderr, flush=True)
    begin = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # torch.set_num_threads asks for more where more are measured
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, env=environment, check=False)
    print(f"[bench] {name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
