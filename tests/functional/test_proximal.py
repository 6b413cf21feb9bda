from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from torch_strongdual.errors import InvalidInputError, ShapeError
from torch_strongdual.functional import prox_branch_norm


def weight_of(seed: int) -> torch.Tensor:
    return torch.randn(3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 1000), st.floats(0, 3))
def test_optimality_condition(seed: int, threshold: float) -> None:
    """``W - V`` is ``t V / ||V||``, or no longer than ``t`` where ``V`` is zero."""
    weight = weight_of(seed)
    result = prox_branch_norm(weight, torch.full((3,), threshold, dtype=torch.float64))
    for before, after in zip(weight, result, strict=True):
        if (after == 0).all():
            assert before.norm() <= threshold
        else:
            torch.testing.assert_close(before - after, threshold * after / after.norm(), rtol=1e-9, atol=1e-12)


def test_minimises_its_problem() -> None:
    weight, threshold = weight_of(0)[:1], 0.4
    target = weight.flatten().numpy()

    def objective(v: np.ndarray) -> float:
        return float(0.5 * np.sum((v - target) ** 2) + threshold * np.linalg.norm(v))

    found = minimize(objective, target, tol=1e-14).x
    result = prox_branch_norm(weight, torch.tensor([threshold], dtype=torch.float64))
    np.testing.assert_allclose(result.flatten().numpy(), found, atol=1e-6)


def test_exact_zeros_and_exact_copies() -> None:
    weight = weight_of(1)
    norms = weight.flatten(1).norm(dim=1)
    assert prox_branch_norm(weight, 1.001 * norms).count_nonzero() == 0
    assert prox_branch_norm(weight, torch.full_like(norms, math.inf)).count_nonzero() == 0
    assert torch.equal(prox_branch_norm(weight, torch.zeros_like(norms)), weight)
    assert torch.equal(prox_branch_norm(weight, -norms), weight)
    assert prox_branch_norm(0 * weight, torch.zeros_like(norms)).count_nonzero() == 0


def test_nan_is_not_hidden() -> None:
    weight = weight_of(2)
    weight[0, 0, 0] = math.nan
    assert prox_branch_norm(weight, torch.full((3,), 100.0, dtype=torch.float64))[0].isnan().all()


def test_errors() -> None:
    with pytest.raises(ShapeError, match=r"`threshold` has shape \(2,\); expected \(3\), that is one number a branch"):
        prox_branch_norm(weight_of(0), torch.ones(2))
    with pytest.raises(ShapeError, match="2 dimensions"):
        prox_branch_norm(torch.ones(3, 2), torch.ones(3))
    with pytest.raises(InvalidInputError, match=r"torch\.int64"):
        prox_branch_norm(torch.ones(3, 2, 2, dtype=torch.int64), torch.ones(3))
