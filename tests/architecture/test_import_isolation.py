from __future__ import annotations

import subprocess
import sys

from ._source_tree import ROOT

HEAVY = {"lightning", "pytorch_lightning", "torchmetrics", "cvxpy", "cvxpylayers", "numba", "scipy", "sklearn", "matplotlib"}
CORE = ("functional", "losses", "problems", "nn", "optim", "certification")


def _heavy_modules_after(statement: str) -> set[str]:
    """Heavy packages that a fresh interpreter holds after ``statement``, beyond those ``import torch`` itself brings."""
    program = (
        "import sys, torch\n"
        "before = {name.split('.')[0] for name in sys.modules}\n"
        f"{statement}\n"
        "print('heads:', *sorted({name.split('.')[0] for name in sys.modules} - before))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return HEAVY & set(done.stdout.split("heads:")[-1].split())


def test_importing_the_core_loads_nothing_heavy() -> None:
    modules = ["torch_strongdual", *(f"torch_strongdual.{name}" for name in CORE)]
    assert _heavy_modules_after(f"import {', '.join(modules)}") == set()


def test_importing_the_metrics_does_not_load_lightning_or_solvers() -> None:
    assert not _heavy_modules_after("import torch_strongdual.metrics") & {"lightning", "cvxpy", "cvxpylayers", "numba"}


def test_importing_the_callbacks_does_not_load_solvers() -> None:
    assert not _heavy_modules_after("import torch_strongdual.callbacks") & {"cvxpy", "cvxpylayers", "numba"}


def test_planted_imports_are_seen() -> None:
    assert _heavy_modules_after("import torch_strongdual, scipy, torchmetrics") >= {"scipy", "torchmetrics"}
