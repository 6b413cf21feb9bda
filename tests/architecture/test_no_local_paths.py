from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from ._source_tree import ROOT

# Written in pieces, so that this file passes its own test.
_FOLDERS = "|".join(["wor" + "k", "hom" + "e", "roo" + "t", "far" + "m", "op" + "t", "User" + "s", "mn" + "t", "tm" + "p"])
_LOCAL_PATH = re.compile(rf"(?<![\w.$)}}~/\-])/(?:{_FOLDERS})/[\w.]|[A-Z]:\\{'User' + 's'}")
_PACKAGE_HOST = re.compile(
    "python" + "hosted|" + r"download\.pytorch|" + "--(?:extra-)?" + "index-url|--find" + "-links", re.IGNORECASE
)


def _tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip(f"not a git checkout: {listing.stderr.strip()}")
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def _findings(text: str) -> list[str]:
    return [match.group(0) for pattern in (_LOCAL_PATH, _PACKAGE_HOST) for match in pattern.finditer(text)]


def test_no_tracked_file_names_a_path_of_some_machine_or_a_package_host() -> None:
    found = []
    for path in _tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # an image
        found += [f"{path.relative_to(ROOT)}: {finding}" for finding in _findings(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", _FOLDERS.split("|"))
def test_planted_paths_are_seen(folder: str) -> None:
    assert _findings(f"see /{folder}/someone/project") != []
    assert _findings(f"see https://example.org/{folder}/page and tests/{folder}/file") == []


def test_planted_package_hosts_are_seen() -> None:
    assert _findings("pip install --extra-" + "index-url https://host/simple torch") != []
    assert _findings("pip install -c constraints.txt torch") == []
