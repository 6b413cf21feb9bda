from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_strongdual.errors import InvalidInputError
from torch_strongdual.problems import PlantedProblem, planted_rank_one_relu

from ._checks import assert_no_network_is_better, assert_optimal


def _ray_norms(problem: PlantedProblem) -> list[float]:
    """``||Lam' (X u)_+||`` at the two unit directions that span the rows of the inputs."""
    axis = np.linalg.svd(problem.inputs.numpy())[2][0]
    coordinates = problem.inputs.numpy() @ axis
    return [float(np.linalg.norm(problem.dual_point.numpy().T @ np.maximum(sign * coordinates, 0))) for sign in (1, -1)]


@given(
    seed=st.integers(0, 2**32),
    num_layers=st.integers(2, 5),
    out_features=st.integers(1, 3),
    output_bias=st.booleans(),
    reduction=st.sampled_from(["mean", "sum"]),
)
def test_the_planted_network_and_dual_point_prove_each_other(
    seed: int, num_layers: int, out_features: int, output_bias: bool, reduction: str
) -> None:
    problem = planted_rank_one_relu(
        out_features=out_features,
        num_layers=num_layers,
        output_bias=output_bias,
        reduction=reduction,
        generator=torch.Generator().manual_seed(seed),
    )
    assert np.linalg.matrix_rank(problem.inputs.numpy()) == 1
    np.testing.assert_allclose(_ray_norms(problem), problem.path_decay, rtol=1e-12)
    assert_optimal(problem, max(_ray_norms(problem)))


@given(seed=st.integers(0, 2**32), num_layers=st.integers(2, 4), width=st.integers(1, 4))
def test_no_wider_branch_of_unit_norm_exceeds_the_closed_form_of_the_dual_norm(seed: int, num_layers: int, width: int) -> None:
    problem = planted_rank_one_relu(num_layers=num_layers, out_features=2, generator=torch.Generator().manual_seed(seed))
    rng = np.random.default_rng(seed)
    for _ in range(50):
        features = problem.inputs.numpy()
        for fan_out in [width] * (num_layers - 1):
            weight = rng.standard_normal((features.shape[1], fan_out))
            features = np.maximum(features @ weight / np.linalg.norm(weight), 0)
        assert np.linalg.norm(problem.dual_point.numpy().T @ features) <= problem.path_decay * (1 + 1e-12)


@given(seed=st.integers(0, 2**32), size=st.sampled_from([1e-4, 1e-2, 0.3, 2.0]), output_bias=st.booleans())
def test_no_network_is_better(seed: int, size: float, output_bias: bool) -> None:
    problem = planted_rank_one_relu(num_layers=3, output_bias=output_bias, generator=torch.Generator().manual_seed(seed))
    assert_no_network_is_better(problem, seed, size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 3}, "`num_samples` is 3; expected a whole number, at least 4"),
        ({"num_layers": 1}, "`num_layers` is 1"),
        ({"out_features": 0}, "`out_features` is 0"),
        ({"in_features": 0}, "`in_features` is 0"),
        ({"path_decay": 0.0}, "`path_decay` is 0.0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        planted_rank_one_relu(**arguments)  # type: ignore[arg-type]
