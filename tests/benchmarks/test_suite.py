"""What all benchmarks share: finding them, taking turns, writing results."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks._ratios import Ratio, interleaved_ratios
from benchmarks._report import RatioReport, RatioRow
from benchmarks._suite import Options, find_benchmarks


def spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


class TestRatios:
    def test_a_call_of_three_times_the_work_takes_three_times_as_long(self) -> None:
        calls = {"short": lambda: spin(0.001), "long": lambda: spin(0.003)}
        ratio = interleaved_ratios(calls, "short", repetitions=7, seconds=0.0)["long"]
        assert ratio.median == pytest.approx(3.0, rel=0.1)
        assert ratio.low <= ratio.median <= ratio.high
        assert ratio.seconds == pytest.approx(0.003, rel=0.1)
        assert ratio.clock == "CPU time"

    def test_candidates_take_turns(self) -> None:
        order: list[str] = []
        calls = {name: lambda name=name: order.append(name) for name in "ab"}
        interleaved_ratios(calls, "a", repetitions=8, seconds=0.0)
        turns = "".join(order)[-8 * 2 * 3 :]  # each turn is one call after two to warm up
        assert turns == "aaabbbbbbaaa" * 4

    def test_few_repetitions_are_refused(self) -> None:
        with pytest.raises(ValueError, match="`repetitions` is 6; expected at least 7"):
            interleaved_ratios({"a": lambda: None}, "a", repetitions=6)


class TestReport:
    ratio = Ratio(candidate="new", reference="old", median=1.25, low=1.2, high=1.375, seconds=2e-3, reference_seconds=1.6e-3,
                  repetitions=9, num_threads=1, clock="CPU time")  # fmt: skip

    def test_says_what_was_measured_and_whether_it_is_enough(self, tmp_path: Path) -> None:
        rows = [RatioRow(work="w", ratio=self.ratio, target=target) for target in (1.3, 1.2, None)]
        text = RatioReport(title="T", rows=rows, notes=["N."]).write(tmp_path / "folder" / "r")
        assert text == (tmp_path / "folder" / "r.txt").read_text()
        for part in ("1.25 (1.20 to 1.38)", "1.3 +", "1.2 -", "2.00 ms", "1.60 ms", "torch", "median (quartiles) of 9", "N."):
            assert part in text
        record = json.loads((tmp_path / "folder" / "r.json").read_text())
        assert [row["is_reached"] for row in record["rows"]] == [True, False, None]
        assert record["rows"][0]["median"] == 1.25
        assert set(record["facts"]) >= {"date", "processor", "num_cores", "versions"}


class TestSuite:
    def test_finds_modules_that_declare_a_benchmark(self) -> None:
        found = find_benchmarks()
        assert {"dual_norm", "parallel_net"} <= set(found)
        assert "soundness_campaign" not in found

    def test_results_of_quick_runs_and_other_devices_have_names_of_their_own(self) -> None:
        names = [
            Options(name="n", quick=quick, device=device).stem.name for quick in (False, True) for device in ("cpu", "cuda")
        ]
        assert names == ["n", "n_cuda", "n_quick", "n_cuda_quick"]

    def test_lists_what_there_is(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--list"]) == 0
        assert "parallel_net" in capsys.readouterr().out

    def test_unknown_names_are_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["paralel_net"])
        assert "no benchmark is called paralel_net; there are" in capsys.readouterr().err

    @pytest.mark.slow
    @pytest.mark.parametrize("name", sorted(find_benchmarks()))
    def test_every_benchmark_takes_the_common_options(self, name: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", "--help"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert {"--quick", "--output"} <= set(done.stdout.replace("[", " ").replace("]", " ").split())
