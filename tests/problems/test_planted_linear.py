from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_strongdual.errors import InvalidInputError
from torch_strongdual.problems import PlantedProblem, planted_linear

from ._checks import assert_no_network_is_better, assert_optimal


def _dual_norm(problem: PlantedProblem) -> float:
    return float(np.linalg.norm(problem.inputs.numpy().T @ problem.dual_point.numpy(), ord=2))


@given(
    seed=st.integers(0, 2**32),
    num_layers=st.integers(2, 5),
    rank=st.integers(1, 3),
    output_bias=st.booleans(),
    reduction=st.sampled_from(["mean", "sum"]),
    path_decay=st.sampled_from([1e-3, 0.1, 10.0]),
)
def test_the_planted_network_and_dual_point_prove_each_other(
    seed: int, num_layers: int, rank: int, output_bias: bool, reduction: str, path_decay: float
) -> None:
    problem = planted_linear(
        rank=rank,
        num_layers=num_layers,
        output_bias=output_bias,
        path_decay=path_decay,
        reduction=reduction,
        generator=torch.Generator().manual_seed(seed),
    )
    assert_optimal(problem, _dual_norm(problem))


@given(seed=st.integers(0, 2**32), size=st.sampled_from([1e-4, 1e-2, 0.3, 2.0]), output_bias=st.booleans())
def test_no_network_is_better(seed: int, size: float, output_bias: bool) -> None:
    problem = planted_linear(output_bias=output_bias, generator=torch.Generator().manual_seed(seed))
    assert_no_network_is_better(problem, seed, size)


@given(seed=st.integers(0, 2**32), rank=st.integers(1, 3))
def test_the_optimum_has_the_rank_asked_for_and_satisfies_the_subgradient_condition(seed: int, rank: int) -> None:
    problem = planted_linear(rank=rank, reduction="sum", generator=torch.Generator().manual_seed(seed))
    first, last = (weight.numpy() for weight in problem.optimal_weights)
    product = np.einsum("khi,koh->io", first, last)
    assert np.linalg.matrix_rank(product) == rank
    residual = 2.0 * problem.inputs.numpy().T @ (problem.targets.numpy() - problem.inputs.numpy() @ product)
    nuclear = np.linalg.svd(product, compute_uv=False).sum()
    assert np.sum(residual * product) == pytest.approx(problem.path_decay * nuclear, rel=1e-10)


def test_a_square_system_leaves_no_free_direction_and_is_still_planted() -> None:
    problem = planted_linear(num_samples=5, in_features=5, generator=torch.Generator().manual_seed(3))
    assert_optimal(problem, _dual_norm(problem))


def test_the_seed_decides_everything() -> None:
    first, again, other = (planted_linear(generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.inputs, other.inputs)


def test_layers_of_a_branch_are_balanced() -> None:
    problem = planted_linear(num_layers=4, generator=torch.Generator().manual_seed(0))
    norms = torch.stack([weight.flatten(1).norm(dim=1) for weight in problem.optimal_weights])
    torch.testing.assert_close(norms, norms[:1].expand_as(norms), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 4, "in_features": 5}, "`num_samples` is 4; expected a whole number, at least 5"),
        ({"num_samples": 5, "in_features": 5, "output_bias": True}, "`num_samples` is 5; expected a whole number, at least 6"),
        ({"rank": 4}, "`rank` is 4; expected a whole number, at least 1 and at most 3"),
        ({"num_layers": 1}, "`num_layers` is 1"),
        ({"num_layers": True}, "`num_layers` is True"),
        ({"in_features": 0}, "`in_features` is 0"),
        ({"out_features": 0}, "`out_features` is 0"),
        ({"path_decay": 0.0}, "`path_decay` is 0.0"),
        ({"path_decay": float("inf")}, "`path_decay` is inf"),
        ({"path_decay": float("nan")}, "`path_decay` is nan"),
        ({"reduction": "none"}, "`reduction` is 'none'"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        planted_linear(**arguments)  # type: ignore[arg-type]
