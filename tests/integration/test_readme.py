"""Every Python block of the README and of the page on training runs as it stands, in its own namespace."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README, TRAINING = ROOT / "README.md", ROOT / "docs" / "training.md"


def blocks_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def run(block: str, page: Path) -> None:
    with warnings.catch_warnings():  # Lightning gives hints about workers and logging
        warnings.filterwarnings("ignore", module="lightning|pytorch_lightning|torch.utils.data")
        exec(compile(block, str(page), "exec"), {"__name__": page.stem})


def test_readme_has_all_three_ways() -> None:
    blocks = blocks_of(README)
    assert len(blocks) == 3
    assert "L.Trainer" in blocks[0]
    assert "certify(net" in blocks[1]
    assert "optimize_to_certificate(net" in blocks[2]


@pytest.mark.parametrize("block", blocks_of(README), ids=["lightning", "pytorch", "optimize"])
def test_readme_block_ends_certified(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(block, README)
    assert "globally optimal to" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("block", "shown"),
    list(
        zip(
            blocks_of(TRAINING), ["globally optimal to", "globally optimal to", r"200 \{'accuracy': .*'gap': 0\.0"], strict=True
        )
    ),
    ids=["optimum", "lightning", "metrics"],
)
def test_block_on_training(
    block: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(block, TRAINING)
    assert re.search(shown, capsys.readouterr().out)
