"""Shared set-up: fixed seeds, one thread, hypothesis profile, reasons for skips."""

from __future__ import annotations

import importlib.util

import pytest

_MISSING = [name for name in ("torch", "hypothesis", "torch_strongdual") if importlib.util.find_spec(name) is None]
if _MISSING:
    pytest.exit(
        f"The tests need {', '.join(_MISSING)}, not installed here. Run `make test`, or first "
        'pip install -c constraints.txt -e ".[dev]"',
        returncode=4,
    )

import torch  # noqa: E402  (behind the message above)
from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile("default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")
torch.set_num_threads(1)  # the suite runs several processes, and sums in one order are repeatable


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch.cuda.is_available() is False"))
