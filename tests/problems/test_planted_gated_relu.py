from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_strongdual.errors import InvalidInputError
from torch_strongdual.problems import PlantedProblem, planted_gated_relu

from ._checks import assert_no_network_is_better, assert_optimal, masks_of


def _dual_norms(problem: PlantedProblem) -> list[float]:
    inputs, point = problem.inputs.numpy(), problem.dual_point.numpy()
    return [float(np.linalg.norm(inputs.T @ (mask[:, None] * point), ord=2)) for mask in masks_of(problem)]


@given(
    seed=st.integers(0, 2**32),
    num_layers=st.integers(2, 3),
    num_gates=st.integers(1, 3),
    rank=st.integers(1, 2),
    output_bias=st.booleans(),
    reduction=st.sampled_from(["mean", "sum"]),
)
def test_the_planted_network_and_dual_point_prove_each_other(
    seed: int, num_layers: int, num_gates: int, rank: int, output_bias: bool, reduction: str
) -> None:
    problem = planted_gated_relu(
        400,
        num_layers=num_layers,
        num_gates=num_gates,
        rank=rank,
        output_bias=output_bias,
        reduction=reduction,
        generator=torch.Generator().manual_seed(seed),
    )
    assert len(problem.optimal_weights[0]) == num_gates * rank
    assert_optimal(problem, max(_dual_norms(problem)))


def test_every_gate_is_active() -> None:
    problem = planted_gated_relu(rank=2, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(_dual_norms(problem), problem.path_decay, rtol=1e-11)
    assert len(np.unique(masks_of(problem), axis=0)) == 3


@given(seed=st.integers(0, 2**32), size=st.sampled_from([1e-4, 1e-2, 0.3, 2.0]))
def test_no_network_with_these_gates_is_better(seed: int, size: float) -> None:
    problem = planted_gated_relu(200, rank=2, output_bias=True, generator=torch.Generator().manual_seed(seed))
    assert_no_network_is_better(problem, seed, size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 11}, "`num_samples` is 11, too few to solve 12 dual equations"),
        ({"num_samples": 40, "num_layers": 6}, "`num_samples` is 40, too few"),
        ({"num_gates": 0}, "`num_gates` is 0"),
        ({"rank": 3}, "`rank` is 3; expected a whole number, at least 1 and at most 2"),
        ({"path_decay": -1.0}, "`path_decay` is -1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        planted_gated_relu(generator=torch.Generator().manual_seed(0), **arguments)  # type: ignore[arg-type]
