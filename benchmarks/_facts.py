"""What a result was measured with: machine, versions, date."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from torch_strongdual import __version__

__all__ = ["fact_lines", "json_safe", "machine_facts"]


def machine_facts(packages: Sequence[str] = ("torch", "numpy"), *, device: str = "cpu") -> dict[str, object]:
    """Machine, versions and date, for the head of a results file.

    Args:
        packages: Distributions whose versions matter.
        device: What the work ran on; for ``"cuda"`` the card is named, too.
    """
    facts: dict[str, object] = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": _processor(),
        "machine": platform.machine(),
        "num_cores": os.cpu_count(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
    }
    if device.startswith("cuda"):
        facts["accelerator"] = torch.cuda.get_device_name(device)
    versions = {"torch_strongdual": __version__, "python": platform.python_version()}
    facts["versions"] = versions | {package: _version(package) for package in packages}
    return facts


def fact_lines(facts: Mapping[str, object]) -> list[str]:
    """The facts in two lines of text, and a third if other processes ran meanwhile."""
    versions, loads, num_cores = facts["versions"], facts["load_average"], facts["num_cores"]
    assert isinstance(versions, dict)
    assert isinstance(loads, list)
    assert isinstance(num_cores, int)
    card = f"{facts['accelerator']}, " if "accelerator" in facts else ""
    lines = [
        f"{facts['date']}, {card}{facts['processor']}, {facts['num_cores']} cores, load average at the end "
        f"{facts['load_average']}.",
        "Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".",
    ]
    if loads[0] > num_cores:
        lines.append("Measured on a shared machine, busy with other work: more processes ran than it has cores.")
    return lines


def json_safe(value: object) -> object:
    """Infinity and NaN as ``null``."""
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return model or platform.processor()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
