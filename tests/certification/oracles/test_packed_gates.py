from __future__ import annotations

import numpy as np
import pytest

from torch_strongdual.certification.oracles._packed_gates import PackedGates
from torch_strongdual.functional import _row_blocks


@pytest.mark.parametrize("num_samples", [1, 7, 8, 9, 64, 65, 101])
@pytest.mark.parametrize("block", [1, 3, 8, 13, 1000])
def test_bits_are_the_masks(monkeypatch: pytest.MonkeyPatch, num_samples: int, block: int) -> None:
    monkeypatch.setattr(_row_blocks, "_NUMBERS", block)
    generator = np.random.default_rng(num_samples + 1000 * block)
    masks = generator.integers(0, 2, (6, num_samples)).astype(np.float64)
    masks[4] = masks[1]
    gates = PackedGates.of(num_samples, 1, lambda rows: masks[:, rows])
    assert gates is not None
    _, first = np.unique(masks, axis=0, return_index=True)
    assert gates.first_branches == tuple(sorted(first))
    distinct = masks[list(gates.first_branches)]
    for _ in range(20):
        start, stop = sorted(generator.integers(0, num_samples + 1, 2))
        if start < stop:
            some = slice(int(generator.integers(0, len(gates))), len(gates))
            np.testing.assert_array_equal(gates.masks(some, slice(start, stop)), distinct[some, start:stop])


def test_no_gates() -> None:
    assert PackedGates.of(5, 1, lambda rows: None) is None
    assert PackedGates.of(0, 1, lambda rows: np.zeros((2, 0))) is None
