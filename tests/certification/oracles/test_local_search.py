from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.contracts.oracle_cases import (
    OracleCase,
    bent_spec,
    gated_cases,
    linear_cases,
    orthonormal_cases,
    planar_cases,
    rank_one_cases,
    rank_three_cases,
)
from tests.contracts.oracle_contract import OracleContract, check_witnesses
from tests.references.sampled_dual_norm import sampled_dual_norm
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.branch_ascent import ascend_branches, branch_images, unit_layers
from torch_strongdual.certification.oracles.local_search import LocalSearch
from torch_strongdual.nn.branch_spec import BranchActivation, BranchSpec


def deep_cases() -> list[OracleCase]:
    """Three and four layers: ReLU, leaky, narrow and wider than what is searched, a gate in front of a ReLU."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(9, 3, generator=generator).double()
    gates = torch.randn(4, 3, generator=generator)
    gate_then_relu = (BranchActivation(negative_slope=1.0, gate_vectors=(gates,)), BranchActivation())
    specs = [
        bent_spec(3, 4, 2, 1),
        bent_spec(3, 2, 3, 2, 2, slope=0.3),
        bent_spec(3, 20, 2, 2, input_bias=True),
        BranchSpec(widths=(3, 2, 2, 1), activations=gate_then_relu),
    ]
    return [
        OracleCase(
            name=str(spec),
            spec=spec,
            inputs=inputs,
            dual_point=torch.randn(9, spec.out_features, generator=generator).double(),
        )
        for spec in specs
    ]


class TestLocalSearch(OracleContract):
    looseness = None
    proves = False

    def make_oracle(self) -> LocalSearch:
        return LocalSearch(num_starts=6, num_steps=10)

    def make_cases(self) -> list[OracleCase]:
        return [planar_cases()[1], gated_cases()[1], linear_cases()[1], *deep_cases()[2:]]

    def test_the_upper_bound_is_infinite_and_the_reason_is_given(self) -> None:
        for case in self.make_cases():
            found = self.bound(case)
            assert found.upper == math.inf
            assert "no upper bound" in str(found.stats["limited_by"])
            assert found.witnesses, case.name


def test_the_maximum_is_found_on_small_problems() -> None:
    cases = [*planar_cases(), *rank_one_cases(), *rank_three_cases(), *orthonormal_cases(), *linear_cases(), *gated_cases()]
    for case in cases:
        oracle = LocalSearch()
        found = oracle.bound(oracle.init(case.spec, case.inputs), case.dual_point, BoundRequest(deadline=Deadline(20.0)))
        assert found.lower == pytest.approx(case.truth, rel=1e-6), case.name


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_deeper_branches_attain_what_one_unit_a_layer_does(slope: float) -> None:
    """For ReLU that is the two-layer dual norm, for leaky ReLU the one of slope squared."""
    generator = torch.Generator().manual_seed(1)
    inputs, duals = torch.randn(8, 2, generator=generator), torch.randn(8, 1, generator=generator).double()
    request = BoundRequest(deadline=Deadline(20.0))
    values = []
    for spec in (bent_spec(2, 3, 1, slope=slope**2), bent_spec(2, 3, 3, 1, slope=slope)):
        oracle = LocalSearch(num_starts=4, num_steps=5)
        values.append(oracle.bound(oracle.init(spec, inputs), duals, request).lower)
    assert values[1] >= values[0] * (1 - 1e-12)
    assert values[0] > 0.0


def test_three_layers_beat_sampling() -> None:
    for case in deep_cases():
        oracle = LocalSearch()
        found = oracle.bound(oracle.init(case.spec, case.inputs), case.dual_point, BoundRequest(deadline=Deadline(20.0)))
        masks = case.spec.gate_masks(case.inputs)
        sampled = sampled_dual_norm(
            case.matrix().numpy(),
            case.dual_point.numpy(),
            hidden_widths=case.spec.hidden_widths,
            slopes=case.spec.negative_slopes,
            masks=None if masks is None else masks.numpy(),
        )
        assert found.lower >= 0.98 * sampled, case.name
        check_witnesses(case, found)


def test_three_layers_exceed_two_where_mixed_signs_call_for_it() -> None:
    """Duals positive on (1, 0) and (0, 1), negative on (1, 1): two units in the first layer avoid the negative sample."""
    inputs = torch.tensor([[1.0, -0.9], [-0.9, 1.0], [0.3, 0.3]])
    duals = torch.tensor([[1.0], [1.0], [-6.0]]).double()
    request = BoundRequest(deadline=Deadline(20.0))
    lowers = []
    for spec in (bent_spec(2, 4, 1), bent_spec(2, 4, 1, 1)):
        oracle = LocalSearch()
        lowers.append(oracle.bound(oracle.init(spec, inputs), duals, request).lower)
    assert lowers[1] >= lowers[0]


def test_a_counterexample_ends_the_search() -> None:
    case = deep_cases()[0]
    oracle = LocalSearch()
    state = oracle.init(case.spec, case.inputs)
    quick = oracle.bound(state, case.dual_point, BoundRequest(target=1e-6, deadline=Deadline(20.0)))
    full = oracle.bound(state, case.dual_point, BoundRequest(deadline=Deadline(20.0)))
    assert 1e-6 < quick.lower <= full.lower


def test_ascent_never_makes_a_branch_worse() -> None:
    generator = torch.Generator().manual_seed(2)
    inputs, duals = torch.randn(7, 3, generator=generator).double(), torch.randn(7, 2, generator=generator).double()
    starts = unit_layers(
        [torch.randn(9, 4, 3, generator=generator).double(), torch.randn(9, 2, 4, generator=generator).double()]
    )
    starts[0][0] = 0.0  # a dead branch: no gradient, no NaN
    slopes = [0.0, 0.0]

    def values(layers: list[torch.Tensor]) -> torch.Tensor:
        norms: torch.Tensor = torch.linalg.vector_norm(branch_images(inputs, duals, layers, slopes), dim=(1, 2))
        return norms

    better = ascend_branches(inputs, duals, starts, slopes, deadline=Deadline())
    assert (values(better) >= values(starts)).all()
    assert values(better)[1:].sum() > 1.05 * values(starts)[1:].sum()
    assert all(np.isfinite(layer.numpy()).all() for layer in better)
    stopped = ascend_branches(inputs, duals, starts, slopes, deadline=Deadline(0.0))
    assert all(torch.allclose(a, b, atol=1e-15) for a, b in zip(stopped, starts, strict=True))
