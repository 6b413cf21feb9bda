from __future__ import annotations

import numpy as np
import torch

from tests.contracts.oracle_cases import bent_spec
from torch_strongdual.certification.oracles.rank_one_branch import rank_one_branch
from torch_strongdual.functional.branch_features import branch_outputs


def test_the_branch_is_one_neuron_of_the_two_layer_net() -> None:
    generator = np.random.default_rng(0)
    first, last = generator.standard_normal(4), generator.standard_normal(3)
    first, last = first / np.linalg.norm(first), last / np.linalg.norm(last)
    inputs = torch.from_numpy(generator.standard_normal((6, 4)))
    weights = rank_one_branch(bent_spec(4, 2, 5, 3), first, last)
    outputs = branch_outputs(inputs, [w[None] for w in weights], [0.0, 0.0])
    assert np.allclose(outputs.numpy(), np.outer(np.maximum(inputs.numpy() @ first, 0), last))
    assert [tuple(w.shape) for w in weights] == [(2, 4), (5, 2), (3, 5)]
