"""The largest useful strength under the absolute loss, where errors of the zero net vanish and its residual is not unique."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.certification import certify, max_path_decay, optimize_to_certificate
from torch_strongdual.nn import GatedReLU, ParallelNet

LOSSES = {"sum": nn.L1Loss(reduction="sum"), "mean": nn.L1Loss(), "smooth of width zero": nn.SmoothL1Loss(beta=0.0)}


def zero_net(kind: str, num_inputs: int, num_outputs: int, *, bias: bool) -> ParallelNet:
    middle = {"relu": nn.ReLU(), "linear": nn.Identity(), "gated": GatedReLU(num_inputs)}[kind]
    layers = [nn.Linear(num_inputs, 1, bias=False), middle, nn.Linear(1, num_outputs, bias=bias)]
    net = ParallelNet(*layers, num_branches=3, dtype=torch.float64)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    return net


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def test_repeated_medians_leave_the_given_entries_as_they_are() -> None:
    """Three equal targets and another: only the last sample has an input, and a unit of it gains 1 at a cost of path_decay."""
    net = zero_net("linear", 1, 1, bias=True)
    inputs, targets = column(0.0, 0.0, 0.0, 1.0), column(1.0, 1.0, 1.0, 0.0)
    limit = max_path_decay(net, inputs, targets, loss=LOSSES["sum"])
    assert limit.lower == pytest.approx(1.0, rel=1e-9)
    assert limit.upper == pytest.approx(1.0, rel=1e-9)
    assert limit.lower <= 1.0 <= limit.upper


def test_a_residual_that_can_be_zero_is_found() -> None:
    """|1 - f| + |f| is 1 for every f in [0, 1]: the zero net is optimal for all strengths."""
    limit = max_path_decay(zero_net("linear", 1, 1, bias=False), column(1.0, 1.0), column(1.0, 0.0), loss=LOSSES["sum"])
    assert limit.lower == 0.0
    assert limit.upper <= 1e-9


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["relu", "linear", "gated"])
def test_the_zero_net_is_optimal_above_and_is_not_below(kind: str, bias: bool, loss: str) -> None:
    generator = torch.Generator().manual_seed(5)
    for num_outputs in (1, 2):
        torch.manual_seed(3)
        net = zero_net(kind, 2, num_outputs, bias=bias)
        inputs = torch.randn(9, 2, generator=generator, dtype=torch.float64)
        targets = torch.randint(-1, 2, (9, num_outputs), generator=generator).double()
        limit = max_path_decay(net, inputs, targets, loss=LOSSES[loss])
        assert 0.0 < limit.lower <= limit.upper <= 1.001 * limit.lower
        with torch.no_grad():
            if net.output_bias is not None:
                net.output_bias.copy_(targets.median(dim=0).values)
        above = certify(net, inputs, targets, loss=LOSSES[loss], path_decay=limit.upper, rtol=1e-6)
        assert above.is_certified
        below = optimize_to_certificate(net, inputs, targets, loss=LOSSES[loss], path_decay=0.9 * limit.lower, rtol=1e-5)
        assert below.certificate.primal_value < above.primal_value
