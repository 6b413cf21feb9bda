from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ._source_tree import ROOT

HEAVY = {"lightning", "pytorch_lightning", "torchmetrics", "cvxpy", "cvxpylayers", "numba", "scipy", "sklearn", "matplotlib"}
CORE = ("functional", "losses", "problems", "nn", "optim", "certification")
# one after the other in one interpreter, the lightest first
STEPS = {
    "core": f"import torch_strongdual, {', '.join(f'torch_strongdual.{name}' for name in CORE)}",
    "metrics": "import torch_strongdual.metrics",
    "callbacks": "import torch_strongdual.callbacks",
}


@pytest.fixture(scope="module")
def heavy_after() -> dict[str, set[str]]:
    """Heavy packages that a fresh interpreter holds after each step, beyond those ``import torch`` itself brings."""
    program = (
        "import json, sys, torch\n"
        "before, found = {name.split('.')[0] for name in sys.modules}, {}\n"
        f"for step, statement in {STEPS!r}.items():\n"
        "    exec(statement)\n"
        "    found[step] = sorted({name.split('.')[0] for name in sys.modules} - before)\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {step: HEAVY & set(heads) for step, heads in json.loads(done.stdout.splitlines()[-1]).items()}


def test_importing_the_core_loads_nothing_heavy(heavy_after: dict[str, set[str]]) -> None:
    assert heavy_after["core"] == set()


def test_importing_the_metrics_does_not_load_lightning_or_solvers(heavy_after: dict[str, set[str]]) -> None:
    assert not heavy_after["metrics"] & {"lightning", "cvxpy", "cvxpylayers", "numba"}


def test_importing_the_callbacks_does_not_load_solvers(heavy_after: dict[str, set[str]]) -> None:
    assert not heavy_after["callbacks"] & {"cvxpy", "cvxpylayers", "numba"}


def test_what_is_loaded_is_seen(heavy_after: dict[str, set[str]]) -> None:
    assert "torchmetrics" in heavy_after["metrics"]
    assert "lightning" in heavy_after["callbacks"]
