from __future__ import annotations

import ast
import configparser
import dataclasses
import importlib
from pathlib import Path

import pytest

from torch_strongdual import errors

from ._public_names import exported_names, lacks, missing_documentation
from ._source_tree import REMAPPED, ROOT, source_files

MAX_LINES = 400


def _packages() -> list[str]:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    return config["options"]["packages"].split()


def _folder(package: str) -> Path:
    for folder, module in REMAPPED.items():
        if package == module or package.startswith(f"{module}."):
            return ROOT / folder / Path(*package.removeprefix(module).split("."))
    return ROOT / Path(*package.split("."))


@pytest.mark.parametrize("package", _packages())
def test_exported_names_exist_and_are_documented(package: str) -> None:
    found = [s for name in exported_names(_folder(package) / "__init__.py") for s in missing_documentation(package, name)]
    assert not found, "\n".join(found)


def test_every_module_says_what_it_is_for() -> None:
    assert [file.module for file in source_files() if not ast.get_docstring(ast.parse(file.path.read_text()))] == []


def test_everything_in_all_exists() -> None:
    modules = [importlib.import_module(file.module) for file in source_files() if not file.path.name.startswith("__main__")]
    assert [f"{m.__name__}.{name}" for m in modules for name in getattr(m, "__all__", ()) if not hasattr(m, name)] == []


def test_files_are_short() -> None:
    lengths = {str(file.path.relative_to(ROOT)): len(file.path.read_text().splitlines()) for file in source_files()}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_every_error_is_raised_somewhere() -> None:
    """A class that nothing raises or warns with is a promise to callers that is not kept."""
    texts = [file.path.read_text() for file in source_files() if file.module != "torch_strongdual.errors"]
    used = {node.id for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    roots = {errors.StrongDualError, errors.StrongDualWarning}
    assert {name for name in errors.__all__ if getattr(errors, name) not in roots} - used == set()


class _Undocumented:
    def __init__(self, size: int) -> None: ...


class _WithoutArgs:
    """Has a docstring."""

    def __init__(self, size: int) -> None: ...


@dataclasses.dataclass
class _GeneratedDocstring:
    size: int


def _without_example(size: int) -> int:
    """Return it.

    Args:
        size: A number.
    """
    return size


def _complete(size: int) -> int:
    """Return it.

    Args:
        size: A number.

    Example:
        >>> _complete(1)
        1
    """
    return size


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (_Undocumented, "no docstring"),
        (_GeneratedDocstring, "no docstring"),
        (_WithoutArgs, "no `Args:`"),
        (_without_example, "no `Example:`"),
    ],
)
def test_planted_gaps_are_seen(thing: object, message: str) -> None:
    assert len(lacks(thing)) == 1
    assert message in lacks(thing)[0]


def test_a_complete_docstring_passes() -> None:
    assert lacks(_complete) == []


def test_reexports_are_found_and_those_that_do_not_resolve_are_seen(tmp_path: Path) -> None:
    init = tmp_path / "__init__.py"
    init.write_text(
        "from torch_strongdual.errors import ShapeError as ShapeError\nimport math\n__all__ = ['missing', '__version__']\n"
    )
    assert exported_names(init) == ["ShapeError", "missing"]
    assert missing_documentation("torch_strongdual", "no_such_name") == [
        "torch_strongdual exports no_such_name, which it does not have"
    ]
