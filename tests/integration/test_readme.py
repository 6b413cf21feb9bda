"""Every Python block of the README runs as it stands, in its own namespace."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_readme_has_all_three_ways() -> None:
    assert len(BLOCKS) == 3
    assert "L.Trainer" in BLOCKS[0]
    assert "certify(net" in BLOCKS[1]
    assert "optimize_to_certificate(net" in BLOCKS[2]


@pytest.mark.parametrize("block", BLOCKS, ids=["lightning", "pytorch", "optimize"])
def test_readme_block_ends_certified(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():  # Lightning gives hints about workers and logging
        warnings.filterwarnings("ignore", module="lightning|pytorch_lightning|torch.utils.data")
        exec(compile(block, str(README), "exec"), {"__name__": "readme"})
    assert "globally optimal to" in capsys.readouterr().out
