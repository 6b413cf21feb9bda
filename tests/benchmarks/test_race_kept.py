"""Results of the race are written, read again, and measured anew for this library alone."""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks._race_kept import kept_results
from benchmarks._race_report import InstanceResult, MethodResult, write_report
from benchmarks._race_trace import Point


def _method(name: str, objective: float, bound: float = -math.inf) -> MethodResult:
    return MethodResult(method=name, points=[Point(seconds=0.5, objective=objective, bound=bound)], seconds=1.0, note="")


def _result() -> InstanceResult:
    methods = [_method("this library", 1.0, 0.9), _method("Adam, restarts", 1.25)]
    return InstanceResult(name="small", limit=20.0, optimum=math.nan, methods=methods)


def test_a_new_row_of_this_library_leaves_all_others_as_they_were(tmp_path: Path) -> None:
    write_report([_result()], [], tmp_path / "race", settings={"quick": False})
    ours = _method("this library", 0.99, 0.95)

    found = kept_results(tmp_path / "race.json").with_row("small", ours)

    assert found.methods == [ours, _result().methods[1]]
    assert (found.limit, math.isnan(found.optimum)) == (20.0, True)


def test_kept_rows_are_said_to_be_kept_and_since_when_however_often_they_are(tmp_path: Path) -> None:
    write_report([_result()], [], tmp_path / "race", settings={"quick": False})
    first = kept_results(tmp_path / "race.json").measured

    text = write_report([_result()], [], tmp_path / "race", settings={"other_methods_measured": first + " (first)"})

    assert f"from an earlier one: {first} (first)." in text
    assert kept_results(tmp_path / "race.json").measured == first + " (first)"
