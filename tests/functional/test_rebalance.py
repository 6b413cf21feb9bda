from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_strongdual.errors import ShapeError
from torch_strongdual.functional import branch_outputs, path_penalty, rebalanced

from .test_path_penalty import random_weights


@given(st.integers(1, 5), st.integers(0, 1000), st.floats(-100, 100))
def test_balances_and_keeps_the_product(num_layers: int, seed: int, log_scale: float) -> None:
    weights = random_weights(num_layers, seed=seed)
    weights[0] = weights[0] * 10**log_scale
    balanced = rebalanced(weights)
    norms = torch.stack([weight.flatten(1).norm(dim=1) for weight in balanced])
    torch.testing.assert_close(norms, norms[:1].expand_as(norms), rtol=1e-12, atol=0)
    torch.testing.assert_close(path_penalty(balanced), path_penalty(weights), rtol=1e-12, atol=0)


def test_function_does_not_change() -> None:
    weights = random_weights(3)
    inputs = torch.randn(7, 2, dtype=torch.float64)
    torch.testing.assert_close(
        branch_outputs(inputs, rebalanced(weights), [0.0, 0.0]), branch_outputs(inputs, weights, [0.0, 0.0])
    )


def test_weights_given_are_not_changed_and_balanced_ones_stay() -> None:
    weights = random_weights(3)
    copies = [weight.clone() for weight in weights]
    balanced = rebalanced(weights)
    assert all(torch.equal(weight, copy) for weight, copy in zip(weights, copies, strict=True))
    for weight, again in zip(balanced, rebalanced(balanced), strict=True):
        torch.testing.assert_close(weight, again, rtol=1e-14, atol=0)


def test_branches_with_a_zero_layer_stay_as_they_are() -> None:
    weights = random_weights(3)
    weights[1][2] = 0
    balanced = rebalanced(weights)
    assert all(torch.equal(new[2], old[2]) for new, old in zip(balanced, weights, strict=True))
    assert not torch.equal(balanced[0][0], weights[0][0])


def test_extreme_norms() -> None:
    weights = [torch.full((1, 1, 1), value, dtype=torch.float64) for value in (1e300, 1e-300, 1e300)]
    assert [weight.item() for weight in rebalanced(weights)] == pytest.approx([1e100] * 3, rel=1e-12)


def test_shapes_are_checked() -> None:
    with pytest.raises(ShapeError, match="expected widths that chain"):
        rebalanced([torch.ones(1, 2, 3), torch.ones(1, 1, 3)])
