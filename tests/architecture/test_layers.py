from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import pytest

from ._imports import imports_of
from ._layer_rules import bare_head, violations
from ._source_tree import ROOT, source_files

MODULES = {file.module for file in source_files()}
T = "torch_strongdual"
CARRIED = {(f"{T}.errors", f"{T}.certification.certificate")}  # errors carry certificates, which they know by name only
#: What the second opinion may know of certification: what a certificate is and belongs to, never how it was found.
KNOWN_TO_VERIFICATION = {"_gather", "_own_defaults", "certificate", "deadline", "training_problem", "verification"}


def test_the_library_keeps_the_rules() -> None:
    found = [
        violation
        for file in source_files()
        for violation in violations(file.path.read_text(), file.module, is_package=file.is_package, modules=MODULES)
    ]
    assert not found, "\n".join(found)


def _all_imports() -> dict[str, set[str]]:
    """The modules each module names, for type checkers too; of packages only what is in their ``__init__``."""
    found = {}
    for file in source_files():
        source = file.path.read_text().replace("if TYPE_CHECKING:", "if True:")
        targets = [imported.target for imported in imports_of(source, file.module, is_package=file.is_package)]
        found[file.module] = {name if name in MODULES else name.rpartition(".")[0] for name in targets} & MODULES
    return found


def test_no_two_modules_need_each_other() -> None:
    graph = {module: {t for t in targets if (module, t) not in CARRIED} for module, targets in _all_imports().items()}
    TopologicalSorter(graph).prepare()
    with pytest.raises(CycleError):
        TopologicalSorter(graph | {f"{T}._checks": {f"{T}.recipes.quickstart"}}).prepare()


def test_the_second_opinion_shares_no_code_with_the_search() -> None:
    base = f"{T}.certification."
    found = [
        f"{module} imports {target}"
        for module, targets in _all_imports().items()
        for target in targets
        if module.startswith(f"{base}verification") and target.startswith(base)
        if target.removeprefix(base).split(".")[0] not in KNOWN_TO_VERIFICATION
    ]
    assert not found, "\n".join(found)


def test_the_files_are_found() -> None:
    assert {T, f"{T}.errors", f"{T}.nn.branch_spec", f"{T}.callbacks", f"{T}.recipes"} <= MODULES
    files = source_files()
    assert len({file.module for file in files}) == len(files)


def test_nobody_imports_the_linked_folders_by_their_bare_names() -> None:
    found = [
        f"{path.relative_to(ROOT)}, line {imported.line}: {reason}"
        for path in [*ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]
        for imported in imports_of(path.read_text(), "x", is_package=False)
        if (reason := bare_head(imported))
    ]
    assert not found, "\n".join(found)


def test_references_are_independent_of_the_library() -> None:
    found = [
        f"{path.relative_to(ROOT)}, line {imported.line}"
        for path in ROOT.glob("tests/references/**/*.py")
        for imported in imports_of(path.read_text(), "tests.references.x", is_package=False)
        if imported.head == T and not path.name.startswith("test_")
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        (f"{T}.errors", f"from {T} import _checks", "above `errors`"),
        (f"{T}.functional.x", f"from {T}.nn import ParallelNet", "above `functional`"),
        (f"{T}.functional.x", f"import {T}.certification.certificate", "above `functional`"),
        (f"{T}.functional.x", f"from {T} import certify", "above `functional`"),
        (f"{T}.nn.x", f"def f():\n    from {T}.certification import certify", "above `nn`"),
        (f"{T}.nn.x", f"import importlib\nimportlib.import_module('{T}.recipes.x')", "above `nn`"),
        (f"{T}.nn.x", f"from {T}.optim import PathSGD", "do not know each other"),
        (f"{T}.optim.x", f"from {T}.nn.parallel_net import ParallelNet", "do not know each other"),
        (f"{T}.metrics.x", f"from {T}.callbacks import CertifyOptimality", "above `metrics`"),
        (f"{T}.callbacks.x", f"from {T}.recipes.quickstart import main", "above `callbacks`"),
        (f"{T}.brand_new.x", "import torch", "no place in the order"),
        (f"{T}.certification.x", f"from {T}.brand_new.x import y", "no place in the order"),
        (f"{T}.certification.x", "from ..nn import ParallelNet", "relative to a parent"),
        (f"{T}.recipes.x", "import callbacks", "by its bare name"),
        (f"{T}.callbacks.x", "from recipes.quickstart import main", "by its bare name"),
        (f"{T}.metrics.x", "import lightning as L", "allowed only in callbacks, recipes"),
        (f"{T}.certification.x", "from pytorch_lightning import Callback", "allowed only in callbacks, recipes"),
        (
            f"{T}.certification.x",
            "def f():\n    from torchmetrics import Metric",
            "allowed only in callbacks, metrics, recipes",
        ),
        (f"{T}.losses.x", "def f():\n    import cvxpy as cp", "allowed only in certification"),
        (f"{T}.certification.x", "import cvxpy as cp", "inside the function"),
        (
            f"{T}.certification.x",
            "try:\n    from cvxpylayers.torch import CvxpyLayer\nexcept ImportError:\n    pass",
            "inside the",
        ),
        (f"{T}.nn.x", "import numba", "allowed only in _compiled_kernel, certification, optim"),
        (f"{T}.optim.x", "def f():\n    import numba", "_*_kernel.py"),
        (f"{T}.optim.x", f"from {T}.optim._step_kernel import run", "imports the kernel"),
        (f"{T}.nn.x", "def f():\n    import matplotlib", "allowed only in certification, recipes"),
        (f"{T}.certification.x", "from matplotlib.figure import Figure", "inside the function"),
        (f"{T}.certification.oracles.x", "def f():\n    import numba", "_*_kernel.py"),
        (f"{T}.certification._box_kernel", "import numba", "_*_kernel.py"),
        (f"{T}.certification.oracles.x", f"from {T}.certification.oracles._box_kernel import run", "imports the kernel"),
        (f"{T}.optim.x", f"from {T}._compiled_kernel import when_compiled", "imports the kernel"),
        (f"{T}.certification.oracles.x", f"from {T}.certification.oracles import _box_kernel", "imports the kernel"),
        (f"{T}.certification.oracles.x", "from ._box_kernel import run", "imports the kernel"),
        (
            f"{T}.nn.x",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    import lightning",
            "allowed only",
        ),
    ],
)
def test_planted_violations_are_caught(module: str, source: str, message: str) -> None:
    found = violations(source, module, modules=MODULES)
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            f"{T}.errors",
            f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from {T}.certification.certificate import C",
        ),
        (f"{T}._checks", f"from {T} import errors"),
        (f"{T}.problems.x", f"from {T}.nn.branch_spec import BranchSpec\nfrom {T}.losses import HalfSquaredLoss"),
        (f"{T}.certification.x", "def f():\n    import cvxpy\n    from cvxpylayers.torch import CvxpyLayer"),
        (f"{T}.certification.oracles._box_kernel", f"import numba\nfrom {T}.certification.oracles._face_kernel import g"),
        (f"{T}.optim._step_kernel", "import numba"),
        (f"{T}.certification.oracles.x", f"def f():\n    from {T}.certification.oracles._box_kernel import run"),
        (f"{T}.metrics.x", f"import torchmetrics\nfrom {T} import certify"),
        (f"{T}.callbacks.x", "import lightning as L\nfrom .certify_optimality import CertifyOptimality"),
        (f"{T}.recipes.x", f"import lightning, sklearn, matplotlib\nfrom {T}.callbacks import CertifyOptimality"),
    ],
)
def test_what_the_rules_allow_passes(module: str, source: str) -> None:
    assert violations(source, module, modules=MODULES) == []


def test_the_top_level_package_leaves_hosts_and_upper_layers_alone() -> None:
    source = f"from {T}.certification import certify\nfrom {T}.callbacks import CertifyOptimality"
    assert len(violations(source, T, is_package=True, modules=MODULES)) == 1
