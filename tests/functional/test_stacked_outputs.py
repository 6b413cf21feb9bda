from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from torch_strongdual.functional.stacked_outputs import stacked_outputs


@pytest.mark.parametrize("num_branches", [1, 2, 5])
@pytest.mark.parametrize("widths", [(3, 4, 2), (3, 1, 1), (2, 3, 4, 1), (1, 2, 3, 2, 5)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("num_samples", [0, 1, 6])
def test_is_the_sum_over_branches(num_branches: int, widths: tuple[int, ...], with_bias: bool, num_samples: int) -> None:
    shapes = list(itertools.pairwise(widths))
    weights = [torch.randn(num_branches, out, inp, dtype=torch.float64) for inp, out in shapes]
    biases: list[Tensor | None] = [
        torch.randn(num_branches, out, dtype=torch.float64) if with_bias else None for _, out in shapes
    ]
    if with_bias:
        biases[-1] = torch.randn(widths[-1], dtype=torch.float64)
    inputs = torch.randn(num_samples, widths[0], dtype=torch.float64)
    expected = torch.zeros(num_samples, widths[-1], dtype=torch.float64)
    for k in range(num_branches):
        hidden = inputs
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            hidden = hidden @ weight[k].T
            hidden = torch.tanh(hidden if bias is None else hidden + bias[k])
        expected = expected + hidden @ weights[-1][k].T
    if biases[-1] is not None:
        expected = expected + biases[-1]
    torch.testing.assert_close(stacked_outputs(inputs, weights, biases, [torch.tanh] * len(shapes[1:])), expected)


@pytest.mark.parametrize("num_branches", [1, 3])
def test_activations_see_features_first(num_branches: int) -> None:
    shapes: list[torch.Size] = []

    def record(hidden: Tensor) -> Tensor:
        shapes.append(hidden.shape)
        return hidden

    weights = [torch.ones(num_branches, 4, 2), torch.ones(num_branches, 5, 4), torch.ones(num_branches, 1, 5)]
    stacked_outputs(torch.ones(7, 2), weights, [None] * 3, [record, record])
    assert shapes == [torch.Size((num_branches, 4, 7)), torch.Size((num_branches, 5, 7))]
