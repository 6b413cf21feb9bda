from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from ._source_tree import REMAPPED, ROOT, source_files


def _setup_cfg(root: Path) -> configparser.ConfigParser:
    config = configparser.ConfigParser(interpolation=None)
    config.read(root / "setup.cfg")
    return config


def _packages_in_the_tree(root: Path) -> list[str]:
    """A folder that holds Python files is a package, whether or not it has an ``__init__``."""
    files = source_files(root)
    return sorted({file.module if file.is_package else file.module.rpartition(".")[0] for file in files})


def _unlisted_and_missing(root: Path) -> tuple[set[str], set[str]]:
    listed = set(_setup_cfg(root)["options"]["packages"].split())
    present = set(_packages_in_the_tree(root))
    return present - listed, listed - present


def test_setup_cfg_lists_every_package() -> None:
    assert _unlisted_and_missing(ROOT) == (set(), set())


def test_every_package_has_an_init() -> None:
    packages = {file.module for file in source_files() if file.is_package}
    assert packages == set(_packages_in_the_tree(ROOT))


def test_the_map_places_the_top_level_folders() -> None:
    lines = _setup_cfg(ROOT)["options"]["package_dir"].split("\n")
    places = {name.strip(): folder.strip() for name, _, folder in (line.partition("=") for line in lines if line)}
    assert places == {"torch_strongdual": "torch_strongdual", **{module: folder for folder, module in REMAPPED.items()}}


@pytest.mark.parametrize("folder", sorted(REMAPPED))
def test_the_links_point_to_the_folders_of_the_map(folder: str) -> None:
    link = ROOT / "torch_strongdual" / folder
    if link.is_symlink():
        assert link.resolve() == ROOT / folder
    else:  # a checkout without links writes the target as text
        assert link.read_text() == f"../{folder}"


def test_the_type_marker_is_shipped() -> None:
    assert _setup_cfg(ROOT)["options.package_data"]["torch_strongdual"].split() == ["py.typed"]
    assert (ROOT / "torch_strongdual" / "py.typed").is_file()


def test_a_forgotten_package_is_seen(tmp_path: Path) -> None:
    for package in ("torch_strongdual", "torch_strongdual/nn", "torch_strongdual/forgotten", "callbacks/inner"):
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / "module.py").touch()
    (tmp_path / "setup.cfg").write_text(
        "[options]\npackages =\n    torch_strongdual\n    torch_strongdual.nn\n    torch_strongdual.gone\n"
    )
    unlisted, missing = _unlisted_and_missing(tmp_path)
    assert unlisted == {"torch_strongdual.forgotten", "torch_strongdual.callbacks.inner"}
    assert missing == {"torch_strongdual.gone"}
