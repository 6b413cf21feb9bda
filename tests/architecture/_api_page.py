"""The page of public names, compared with what the packages export."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_HEADING = re.compile(r"## `([\w.]+)`")
_ROW = re.compile(r"\| \[`(\w+)`\]\(([^)#]+)\) \| ([^|]+) \|")


@dataclass(frozen=True)
class Row:
    """One documented name.

    Args:
        package: Where it is imported from.
        name: The name.
        link: File it leads to, relative to the page.
    """

    package: str
    name: str
    link: str


def rows_of(page: str) -> list[Row]:
    """Return the rows of all tables, in order."""
    rows, package = [], ""
    for line in page.splitlines():
        if heading := _HEADING.fullmatch(line):
            package = heading[1]
        elif row := _ROW.fullmatch(line):
            rows.append(Row(package=package, name=row[1], link=row[2]))
    return rows


def disagreements(page: str, exported: Mapping[str, list[str]], folder: Path) -> list[str]:
    """Return one sentence for each name that page and packages disagree on.

    Args:
        page: Text of the page.
        exported: Public names of each package.
        folder: Where the page lies.
    """
    rows = rows_of(page)
    documented = [(row.package, row.name) for row in rows]
    public = [(package, name) for package, names in exported.items() for name in names]
    return [
        *(f"{package}.{name} is exported but not in the page" for package, name in public if (package, name) not in documented),
        *(f"{package}.{name} is in the page but not exported" for package, name in documented if (package, name) not in public),
        *(
            f"{package}.{name} is in the page twice"
            for package, name in sorted(set(documented))
            if documented.count((package, name)) > 1
        ),
        *(
            f"{row.package}.{row.name} leads to {row.link}, which does not define it"
            for row in rows
            if not _defines(folder, row)
        ),
    ]


def _defines(folder: Path, row: Row) -> bool:
    path = folder / row.link
    return path.is_file() and bool(re.search(rf"^(class|def) {row.name}\b|^{row.name}\b.* = ", path.read_text(), re.MULTILINE))
