from __future__ import annotations

import pytest
import torch

from torch_strongdual.functional import _row_blocks
from torch_strongdual.functional._row_blocks import all_finite, row_blocks


@pytest.mark.parametrize("num_rows", [0, 1, 7, 8, 9, 1000])
@pytest.mark.parametrize("numbers_per_row", [0, 1, 3, 100])
def test_blocks_cover_every_row_once_and_are_small(
    monkeypatch: pytest.MonkeyPatch, num_rows: int, numbers_per_row: int
) -> None:
    monkeypatch.setattr(_row_blocks, "_NUMBERS", 24)
    blocks = list(row_blocks(num_rows, numbers_per_row))
    assert [row for rows in blocks for row in range(num_rows)[rows]] == list(range(num_rows))
    assert all((rows.stop - rows.start) * numbers_per_row <= max(24, numbers_per_row) for rows in blocks)
    assert len({rows.stop - rows.start for rows in blocks[:-1]}) <= 1


@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (50, 2, 2)])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_all_finite(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], bad: float) -> None:
    monkeypatch.setattr(_row_blocks, "_NUMBERS", 24)
    tensor = torch.ones(shape)
    assert all_finite(tensor)
    if tensor.numel():
        tensor.view(-1)[-1] = bad
        assert not all_finite(tensor)


def test_whole_numbers_are_finite() -> None:
    assert all_finite(torch.arange(5))
