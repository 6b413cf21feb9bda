"""Path decays between what hill climbing finds and the true dual norm: an estimate would certify there, a bound must not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.contracts.oracle_cases import bent_spec
from tests.references.sampled_dual_norm import sampled_dual_norm
from tests.references.vertex_enumeration import best_direction
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles import BoundRequest, BoxBranchAndBound


@pytest.mark.parametrize("seed", range(4))
def test_nothing_between_estimate_and_truth_is_proven(seed: int) -> None:
    """Residuals of a good fit on a hundred rows in three dimensions: many maxima of nearly the same height."""
    generator = np.random.default_rng(seed)
    rows, duals = generator.standard_normal((100, 3)), generator.standard_normal((100, 1))
    features = np.maximum(rows @ generator.standard_normal((3, 25)), 0.0)
    duals -= features @ np.linalg.lstsq(features, duals, rcond=None)[0]
    truth, _ = best_direction(rows, duals)
    estimate = sampled_dual_norm(rows, duals, hidden_widths=[1], slopes=[0.0], num_samples=60, num_refined=3, num_steps=40)
    assert 0.9 * truth < estimate < truth * (1 - 1e-7)  # it is low: the interval is not empty
    oracle = BoxBranchAndBound()
    state = oracle.init(bent_spec(3, 1, 1), torch.from_numpy(rows))
    for path_decay in (0.5 * (estimate + truth), truth * (1 - 1e-7), truth * (1 - 1e-10), truth * (1 - 1e-13)):
        request = BoundRequest(rtol=1e-6, target=path_decay, deadline=Deadline(1.0))
        assert oracle.bound(state, torch.from_numpy(duals), request).upper > path_decay
    request = BoundRequest(rtol=1e-3, deadline=Deadline(20.0))
    assert truth <= oracle.bound(state, torch.from_numpy(duals), request).upper * (1 + 1e-15) <= truth * 1.0011
