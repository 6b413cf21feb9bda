from __future__ import annotations

import numpy as np
import pytest
import torch

from torch_strongdual.errors import InvalidInputError
from torch_strongdual.functional import PATH_PENALTIES, path_penalty, path_penalty_gradients

from ..references.path_penalties import gradient_of_branch
from .test_path_penalty import random_weights


@pytest.mark.parametrize("kind", PATH_PENALTIES)
@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
class TestPathPenaltyGradients:
    def test_equals_autograd_with_zero_layers_too(self, kind: str, num_layers: int) -> None:
        weights = random_weights(num_layers)
        weights[0][0] = 0
        weights[-1][1] = 0
        leaves = [weight.requires_grad_() for weight in weights]
        expected = torch.autograd.grad(path_penalty(leaves, kind).sum(), leaves)
        for gradient, truth in zip(path_penalty_gradients(weights, kind), expected, strict=True):
            torch.testing.assert_close(gradient.detach(), truth, rtol=1e-13, atol=1e-13)

    def test_equals_loops_over_branches_and_paths(self, kind: str, num_layers: int) -> None:
        weights = random_weights(num_layers)
        weights[-1][1] = 0
        gradients = path_penalty_gradients(weights, kind)
        for branch in range(4):
            expected = gradient_of_branch([weight[branch].numpy() for weight in weights], kind)
            for gradient, truth in zip(gradients, expected, strict=True):
                np.testing.assert_allclose(gradient[branch].numpy(), truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["product", "l2_path"])
def test_survives_where_the_penalty_underflows(kind: str) -> None:
    first, last = torch.full((1, 1, 1), 1e-200, dtype=torch.float64), torch.full((1, 1, 1), 1e-250, dtype=torch.float64)
    assert path_penalty([first, last], kind).item() == 0
    gradients = path_penalty_gradients([first, last], kind)
    assert gradients[0].item() == pytest.approx(1e-250, rel=1e-14)
    assert gradients[1].item() == pytest.approx(1e-200, rel=1e-14)


def test_unknown_kind() -> None:
    with pytest.raises(InvalidInputError, match="`kind` is 'l1'"):
        path_penalty_gradients(random_weights(2), "l1")
