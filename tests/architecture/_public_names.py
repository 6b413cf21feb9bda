"""What the packages export, and what their documentation lacks."""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib
import inspect
from pathlib import Path


def exported_names(init: Path) -> list[str]:
    """Names that a package exports: those re-exported as ``from a import X as X``, and its ``__all__``."""
    names = []
    for node in ast.walk(ast.parse(init.read_text())):
        if isinstance(node, ast.ImportFrom | ast.Import):
            names += [alias.asname for alias in node.names if alias.asname is not None and alias.asname == alias.name]
        elif isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names += ast.literal_eval(node.value)
    return sorted({name for name in names if not name.startswith("__")})


def missing_documentation(package: str, name: str) -> list[str]:
    """Return one sentence for each thing that is missing from the documentation of ``package.name``."""
    module = importlib.import_module(package)
    if not hasattr(module, name):
        return [f"{package} exports {name}, which it does not have"]
    return [f"{package}.{name} {lack}" for lack in lacks(getattr(module, name))]


def lacks(thing: object) -> list[str]:
    """What the docstring of a public class or function lacks."""
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return []
    own = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    # A dataclass without a docstring gets its signature as one.
    generated = inspect.isclass(thing) and dataclasses.is_dataclass(thing) and (own or "").startswith(f"{thing.__name__}(")
    if not own or generated:
        return ["has no docstring"]
    found = []
    if _takes_parameters(thing) and "Args:" not in own:
        found.append("has parameters but no `Args:` in its docstring")
    if inspect.isroutine(thing) and "Example:" not in own:
        found.append("has no `Example:` in its docstring")
    if "Example" in own and ">>>" not in own:
        found.append("has an example that is not run: write it with `>>>`")
    return found


def _takes_parameters(thing: object) -> bool:
    if inspect.isclass(thing):
        if issubclass(thing, enum.Enum) or inspect.isabstract(thing):
            return False
        if "__init__" not in vars(thing):
            return False  # its parameters, if any, are documented where its __init__ is
        return len(inspect.signature(thing.__init__).parameters) > 1
    assert callable(thing)
    return bool(inspect.signature(thing).parameters)
