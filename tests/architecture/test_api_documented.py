from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from ._api_page import disagreements, rows_of
from ._public_names import exported_names
from ._source_tree import REMAPPED, ROOT

PAGE = ROOT / "docs" / "api.md"


def _init(package: str) -> Path:
    for folder, module in REMAPPED.items():
        if package == module or package.startswith(f"{module}."):
            return ROOT / folder / Path(*package.removeprefix(module).split(".")) / "__init__.py"
    return ROOT / Path(*package.split(".")) / "__init__.py"


def _exported() -> dict[str, list[str]]:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    public = [package for package in config["options"]["packages"].split() if "._" not in package]
    names = {package: exported_names(_init(package)) for package in public}
    return {**names, "torch_strongdual.errors": exported_names(ROOT / "torch_strongdual" / "errors.py")}


def test_the_page_lists_every_public_name_and_no_other() -> None:
    found = disagreements(PAGE.read_text(), _exported(), PAGE.parent)
    assert not found, "\n".join(found)


def test_every_package_has_its_section() -> None:
    assert [package for package in _exported() if f"## `{package}`" not in PAGE.read_text().splitlines()] == []


def test_every_row_of_a_table_is_read() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and not line.startswith("| Name |")]
    assert len(rows_of(PAGE.read_text())) == len(lines) > 50


ROW = "| [`certify`](module.py) | proves |"


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("## `package`\n", "package.certify is exported but not in the page"),
        (f"## `other`\n{ROW}\n## `package`\n{ROW}", "other.certify is in the page but not exported"),
        (f"## `package`\n{ROW}\n{ROW}", "package.certify is in the page twice"),
        (f"## `package`\n{ROW.replace('module', 'missing')}", "package.certify leads to missing.py, which does not define it"),
        (
            f"## `package`\n{ROW.replace('module', 'stranger')}",
            "package.certify leads to stranger.py, which does not define it",
        ),
    ],
)
def test_planted_disagreements_are_seen(page: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("def certify(model: object) -> None: ...\n")
    (tmp_path / "stranger.py").write_text("from module import certify\n\ndef certify_all() -> None: ...\n")
    assert disagreements(page, {"package": ["certify"]}, tmp_path) == [message]


def test_a_page_that_agrees_passes(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("LIMITS: tuple[int, ...] = (1, 2)\n\n\nclass Solver: ...\n")
    page = "## `package`\n| [`LIMITS`](module.py) | numbers |\n| [`Solver`](module.py) | solves |"
    assert disagreements(page, {"package": ["LIMITS", "Solver"], "empty": []}, tmp_path) == []
