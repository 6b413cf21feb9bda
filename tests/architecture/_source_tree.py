"""The source files of the library and the names they are imported by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REMAPPED = {"callbacks": "torch_strongdual.callbacks", "recipes": "torch_strongdual.recipes"}  # as in setup.cfg


@dataclass(frozen=True)
class SourceFile:
    """A Python file and the module it is."""

    path: Path
    module: str
    is_package: bool


def source_files(root: Path = ROOT) -> list[SourceFile]:
    """Every Python file of the library, those behind the links at their real place only."""
    files = []
    for folder, package in {"torch_strongdual": "torch_strongdual", **REMAPPED}.items():
        base = root / folder
        for path in sorted(base.rglob("*.py")):
            if any((base / Path(*path.relative_to(base).parts[:depth])).is_symlink() for depth in range(1, 3)):
                continue
            parts = path.relative_to(base).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            names = parts[:-1] if is_package else parts
            files.append(SourceFile(path=path, module=".".join([package, *names]), is_package=is_package))
    return files
