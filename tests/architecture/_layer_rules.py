"""The import rules: one direction between layers, hosts and solvers only where they belong."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ._imports import Import, imports_of

# A layer may import those of its own rank and below; "" is the top-level package, which re-exports the library's core.
RANKS = {
    "_version": 0, "errors": 0, "_checks": 1, "_compiled_kernel": 1, "functional": 2, "losses": 3, "problems": 3, "nn": 3,
    "optim": 3, "certification": 4, "": 5, "metrics": 6, "callbacks": 7, "recipes": 8,
}  # fmt: skip
STRANGERS = {("nn", "optim"), ("optim", "nn")}
HOSTS = {
    "lightning": {"callbacks", "recipes"},
    "pytorch_lightning": {"callbacks", "recipes"},
    "torchmetrics": {"metrics", "callbacks", "recipes"},
    "cvxpy": {"certification"},
    "cvxpylayers": {"certification"},
    "numba": {"_compiled_kernel", "certification", "optim"},
    "sklearn": {"recipes"},
    "matplotlib": {"certification", "recipes"},
}
# Layers that import a host inside functions only; recipes may import matplotlib at the top.
IMPORTED_WHEN_USED = {"cvxpy": {"certification"}, "cvxpylayers": {"certification"}, "matplotlib": {"certification"}}
_KERNEL = re.compile(r"torch_strongdual\.((certification\.oracles|optim)\.(\w+\.)*)?_\w+_kernel(\.|$)")


def violations(source: str, module: str, *, is_package: bool = False, modules: Iterable[str] = ()) -> list[str]:
    """Return one sentence for each import of ``source`` that breaks a rule.

    Args:
        source: Python text.
        module: Its full name.
        is_package: Whether it is an ``__init__``.
        modules: Names of all modules of the library, which tell ``from package import module`` from a name in the package.
    """
    known = set(modules)
    found = []
    for imported in imports_of(source, module, is_package=is_package):
        reason = _reason(imported, module, known)
        if reason:
            found.append(f"{module}, line {imported.line}: {reason}")
    return found


def bare_head(imported: Import) -> str | None:
    """Say so if the folder behind ``torch_strongdual.callbacks`` or ``.recipes`` is imported by its bare name."""
    if imported.head in {"callbacks", "recipes"}:
        return f"imports `{imported.head}` by its bare name, a second copy; write torch_strongdual.{imported.head}"
    return None


def _layer(name: str, known: set[str]) -> str:
    parts = name.split(".")[1:]
    if not parts or (len(parts) == 1 and name not in known and parts[0] not in RANKS):
        return ""  # the package itself, or a name in its __init__
    return parts[0]


def _reason(imported: Import, module: str, known: set[str]) -> str | None:
    own = _layer(module, known | {module})
    if own not in RANKS:
        return f"lies in `{own}`, which has no place in the order of layers"
    if imported.parent_relative:
        return f"imports {imported.target} relative to a parent; import across folders absolutely"
    if imported.head == "torch_strongdual":
        return _inside_reason(imported, module, own, _layer(imported.target, known))
    return bare_head(imported) or _host_reason(imported, module, own)


def _inside_reason(imported: Import, module: str, own: str, target: str) -> str | None:
    if target not in RANKS:
        return f"imports {imported.target}, which has no place in the order of layers"
    if RANKS[target] > RANKS[own]:
        return f"imports {imported.target}, which is above `{own or 'torch_strongdual'}`"
    if (own, target) in STRANGERS:
        return f"imports {imported.target}; `nn` and `optim` do not know each other"
    if _KERNEL.match(imported.target) and not imported.in_function and not _KERNEL.match(module):
        return f"imports the kernel {imported.target} at the top; import it inside the function that uses it"
    return None


def _host_reason(imported: Import, module: str, own: str) -> str | None:
    if own not in HOSTS.get(imported.head, {own}):
        return f"imports {imported.head}, allowed only in {', '.join(sorted(HOSTS[imported.head]))}"
    if own in IMPORTED_WHEN_USED.get(imported.head, ()) and not imported.in_function:
        return f"imports {imported.head} at the top; import it inside the function that uses it"
    if imported.head == "numba" and not _KERNEL.match(module):
        return "imports numba; only modules _*_kernel.py do"
    return None
