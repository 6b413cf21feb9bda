"""Gates of many branches on many samples, one bit each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.functional._row_blocks import row_blocks

__all__ = ["PackedGates"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedGates:
    """Which samples the gates of each branch let through; branches with equal gates are kept once.

    Ten thousand gates on a hundred thousand samples take 125 MB, an eightieth of what a float64 matrix would.

    Args:
        bits: Eight samples a byte, shape ``(num_distinct, ceil(num_samples / 8))``.
        first_branches: For each of them the first branch that has it, ascending.
    """

    bits: NDArray[np.uint8]
    first_branches: tuple[int, ...]

    @classmethod
    def of(cls, num_samples: int, numbers_per_sample: int, masks: Callable[[slice], FloatArray | None]) -> PackedGates | None:
        """Evaluate gates block by block.

        Args:
            num_samples: Number of samples.
            numbers_per_sample: Numbers that evaluation holds for each sample.
            masks: Gate products (0 or 1) on some samples, shape ``(num_branches, len(rows))``; ``None`` if there are no gates.

        Example:
            >>> gates = PackedGates.of(3, 1, lambda rows: np.array([[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]])[:, rows])
            >>> len(gates), gates.masks(slice(0, 1), slice(1, 3))
            (1, array([[0., 1.]]))
        """
        bits: NDArray[np.uint8] | None = None
        for rows in row_blocks(num_samples, numbers_per_sample):
            block = masks(rows)
            if block is None:
                return None
            if bits is None:
                bits = np.zeros((len(block), -(-num_samples // 8)), dtype=np.uint8)
            # A block need not begin at a byte: shift it into place, and merge with what its first byte holds already.
            lead = rows.start % 8
            padded = np.concatenate([np.zeros((len(block), lead), dtype=bool), block != 0], axis=1)
            packed = np.packbits(padded, axis=1)
            bits[:, rows.start // 8 : rows.start // 8 + packed.shape[1]] |= packed
        if bits is None:
            return None
        _, first = np.unique(bits.view(np.dtype((np.void, bits.shape[1]))).ravel(), return_index=True)
        first = np.sort(first)
        kept = bits if len(first) == len(bits) else bits[first]
        return cls(bits=kept, first_branches=tuple(int(index) for index in first))

    def __len__(self) -> int:
        """Number of distinct gates."""
        return len(self.first_branches)

    def masks(self, gates: slice, rows: slice) -> FloatArray:  # shape: (gates, rows)
        """0 where a gate is closed, 1 where it is open."""
        lead = rows.start % 8
        unpacked = np.unpackbits(self.bits[gates, rows.start // 8 : -(-rows.stop // 8)], axis=1)
        return unpacked[:, lead : lead + rows.stop - rows.start].astype(np.float64)
