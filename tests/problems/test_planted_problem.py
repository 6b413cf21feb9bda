from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch

from torch_strongdual.problems import planted_gated_relu, planted_linear, planted_orthonormal_relu, planted_rank_one_relu

FAMILIES = [planted_linear, planted_gated_relu, planted_orthonormal_relu, planted_rank_one_relu]


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_is_float64_on_the_cpu_and_shaped_as_the_spec_says(family) -> None:  # type: ignore[no-untyped-def]
    problem = family(generator=torch.Generator().manual_seed(0))
    spec = problem.spec
    tensors = [problem.inputs, problem.targets, problem.dual_point, *problem.optimal_weights]
    assert {(tensor.dtype, tensor.device.type) for tensor in tensors} == {(torch.float64, "cpu")}
    assert problem.targets.shape == problem.dual_point.shape == (len(problem.inputs), spec.out_features)
    shapes = [tuple(weight.shape[1:]) for weight in problem.optimal_weights]
    assert shapes == list(zip(spec.widths[1:], spec.widths[:-1], strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_problems_are_frozen_and_survive_pickling(family) -> None:  # type: ignore[no-untyped-def]
    problem = family(generator=torch.Generator().manual_seed(0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.path_decay = 1.0
    copy = pickle.loads(pickle.dumps(problem))
    assert copy.optimal_value == problem.optimal_value
    assert torch.equal(copy.targets, problem.targets)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_zero_network_is_worse(family) -> None:  # type: ignore[no-untyped-def]
    problem = family(generator=torch.Generator().manual_seed(0))
    assert float(problem.loss(torch.zeros_like(problem.targets), problem.targets)) > problem.optimal_value
