from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_strongdual.errors import InvalidInputError
from torch_strongdual.problems import planted_orthonormal_relu

from ._checks import assert_no_network_is_better, assert_optimal


@given(seed=st.integers(0, 2**32), num_samples=st.integers(2, 12), reduction=st.sampled_from(["mean", "sum"]))
def test_the_planted_network_and_dual_point_prove_each_other(seed: int, num_samples: int, reduction: str) -> None:
    problem = planted_orthonormal_relu(num_samples, 12, reduction=reduction, generator=torch.Generator().manual_seed(seed))
    gram = problem.inputs.numpy() @ problem.inputs.numpy().T
    np.testing.assert_allclose(gram, np.eye(num_samples), atol=1e-14)
    point = problem.dual_point.numpy()[:, 0]
    parts = [float(np.linalg.norm(np.maximum(point, 0))), float(np.linalg.norm(np.maximum(-point, 0)))]
    assert min(parts) == pytest.approx(problem.path_decay, rel=1e-12)
    assert_optimal(problem, max(parts))


@given(seed=st.integers(0, 2**32))
def test_no_sampled_direction_exceeds_the_closed_form_of_the_dual_norm(seed: int) -> None:
    problem = planted_orthonormal_relu(generator=torch.Generator().manual_seed(seed))
    directions = np.random.default_rng(seed).standard_normal((2000, 10))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    values = np.maximum(directions @ problem.inputs.numpy().T, 0) @ problem.dual_point.numpy()[:, 0]
    assert np.abs(values).max() <= problem.path_decay * (1 + 1e-12)


@given(seed=st.integers(0, 2**32), size=st.sampled_from([1e-4, 1e-2, 0.3, 2.0]))
def test_no_network_is_better(seed: int, size: float) -> None:
    assert_no_network_is_better(planted_orthonormal_relu(generator=torch.Generator().manual_seed(seed)), seed, size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 1}, "`num_samples` is 1; expected a whole number, at least 2"),
        ({"in_features": 7}, "`in_features` is 7; expected a whole number, at least 8"),
        ({"path_decay": 0.0}, "`path_decay` is 0.0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        planted_orthonormal_relu(**arguments)  # type: ignore[arg-type]
