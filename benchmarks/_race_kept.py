"""Rows of the other methods from the results there are: they do not depend on the code of this library."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._race_report import InstanceResult, MethodResult
from benchmarks._race_trace import Point

__all__ = ["KeptResults", "kept_results"]


@dataclass(frozen=True, kw_only=True)
class KeptResults:
    """What a run before found.

    Args:
        measured: When, and how busy the machine was, for the head of the new results.
        instances: All of them, by name, with this library's old row first.
    """

    measured: str
    instances: Mapping[str, InstanceResult]

    def with_row(self, name: str, ours: MethodResult) -> InstanceResult:
        """The instance with a new row of this library in place of the old one."""
        old = self.instances[name]
        return InstanceResult(name=name, limit=old.limit, optimum=old.optimum, methods=[ours, *old.methods[1:]])


def kept_results(path: Path) -> KeptResults:
    """Read the JSON file of a run; what was kept there already was measured when it says."""
    record = json.loads(path.read_text())
    now = f"{record['facts']['date']}, load average at its end {record['facts']['load_average']}"
    return KeptResults(
        measured=record["settings"].get("other_methods_measured") or now,
        instances={instance["name"]: _instance(instance) for instance in record["race"]},
    )


def _instance(record: Mapping[str, Any]) -> InstanceResult:
    optimum = math.nan if record["optimum"] is None else record["optimum"]
    methods = [_method(method) for method in record["methods"]]
    return InstanceResult(name=record["name"], limit=record["limit"], optimum=optimum, methods=methods)


def _method(record: Mapping[str, Any]) -> MethodResult:
    points = [_point(point) for point in record["points"]]
    return MethodResult(method=record["method"], points=points, seconds=record["seconds"], note=record["note"])


def _point(record: Mapping[str, Any]) -> Point:
    """JSON has no infinity: ``null`` stands for no objective and for no bound."""
    objective = math.inf if record["objective"] is None else record["objective"]
    bound = -math.inf if record["bound"] is None else record["bound"]
    return Point(seconds=record["seconds"], objective=objective, bound=bound)
