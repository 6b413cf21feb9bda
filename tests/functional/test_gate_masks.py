from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_strongdual.functional.gate_masks import gate_masks

INTEGERS = st.lists(st.integers(-1000, 1000), min_size=3, max_size=3)


@given(row=INTEGERS, gate=INTEGERS)
def test_exact_on_integers(row: list[int], gate: list[int]) -> None:
    """Where no rounding happens, a product of zero opens the gate: the sign is decided exactly."""
    expected = sum(a * b for a, b in zip(row, gate, strict=True)) >= 0
    for dtype in (torch.float32, torch.float64):
        mask = gate_masks(torch.tensor([row], dtype=dtype), torch.tensor([gate], dtype=dtype))
        assert mask.item() is expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_float64_whatever_the_inputs(dtype: torch.dtype) -> None:
    inputs, gates = torch.randn(50, 6).to(dtype), torch.randn(4, 6).to(dtype)
    masks = gate_masks(inputs, gates)
    assert masks.dtype == torch.bool
    for k, gate in enumerate(gates.tolist()):
        for i, row in enumerate(inputs.tolist()):
            exact = sum((Fraction(a) * Fraction(b) for a, b in zip(row, gate, strict=True)), Fraction(0))
            assert masks[k, i].item() is (exact >= 0)


def test_shapes_and_nan() -> None:
    assert gate_masks(torch.zeros(0, 3), torch.zeros(2, 3)).shape == (2, 0)
    assert gate_masks(torch.full((1, 3), torch.nan), torch.zeros(2, 3)).tolist() == [[False], [False]]
