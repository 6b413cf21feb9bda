"""Convolution, activation and average in one: what is not finite, and inputs whose numbers cannot be read."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from torch_strongdual.nn import ParallelNet

from ._networks import looped_outputs


@pytest.fixture
def net() -> ParallelNet:
    return ParallelNet(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2), num_branches=5
    ).requires_grad_(False)


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(4, 1, 6, 5)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("has_one_sign", [False, True])
def test_what_is_not_finite_gives_what_the_branches_give(
    net: ParallelNet, inputs: Tensor, bad: float, has_one_sign: bool
) -> None:
    inputs[1, 0, 2, 2] = bad
    if has_one_sign:  # products are infinite, or zero behind the activation
        for name in ("0.weight", "4.weight"):
            net.get_parameter(name).abs_()
    outputs = net(inputs)
    torch.testing.assert_close(outputs, looped_outputs(net, inputs), equal_nan=True)
    assert outputs[[0, 2, 3]].isfinite().all()
    if has_one_sign:
        assert outputs[1].isnan().all() == math.isnan(bad)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_numbers_are_not_read_while_operations_are_recorded(net: ParallelNet, inputs: Tensor, mode: Any) -> None:
    traced = make_fx(net, tracing_mode=mode, _allow_non_fake_inputs=True)(inputs)
    torch.testing.assert_close(traced(inputs), net(inputs))
