"""Blocks of samples, so that no work on a large data set needs a second copy of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["all_finite", "row_blocks"]

_NUMBERS = 2**20  # 8 MiB of float64


def row_blocks(num_rows: int, numbers_per_row: int) -> Iterator[slice]:
    """Cut rows into consecutive blocks of about a million numbers, all of one length but the last.

    The same arguments give the same blocks, so that products which must agree to the last bit can be taken block by block in
    several places.

    Args:
        num_rows: How many rows there are.
        numbers_per_row: Numbers that are held for each row at a time.

    Example:
        >>> [(rows.start, rows.stop) for rows in row_blocks(5, 2**19)]
        [(0, 2), (2, 4), (4, 5)]
    """
    length = max(1, _NUMBERS // max(1, numbers_per_row))
    for start in range(0, num_rows, length):
        yield slice(start, min(start + length, num_rows))


def all_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; ``torch.isfinite(...).all()`` without its two copies of the tensor."""
    flat = tensor.reshape(-1)
    return all(bool(torch.isfinite(flat[part]).all()) for part in row_blocks(len(flat), 1))
