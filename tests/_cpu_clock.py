"""Deadlines in CPU time, so that tests of time limits mean the same on a busy machine."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from torch_strongdual.certification import deadline

__all__ = ["count_cpu_time"]


def count_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every deadline count the CPU time of this process."""
    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=time.process_time))
