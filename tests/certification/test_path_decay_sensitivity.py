from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.certification import (
    CertificateStatus,
    OptimizationResult,
    certify,
    differentiable_optimum,
    optimize_to_certificate,
    path_decay_sensitivity,
)
from torch_strongdual.errors import InvalidInputError
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import ParallelNet

from ..references.convex_program import convex_program_optimum

STRENGTH = 0.8


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(8, 1, generator=generator, dtype=torch.float64)


def relu(num_branches: int = 2) -> ParallelNet:
    torch.manual_seed(1)
    layers = nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)
    return ParallelNet(*layers, num_branches=num_branches, dtype=torch.float64)


def solved(loss: nn.Module, path_decay: float = STRENGTH, rtol: float = 1e-8) -> OptimizationResult:
    return optimize_to_certificate(relu(), *data(), loss=loss, path_decay=path_decay, rtol=rtol)


def slopes(name: str, step: float) -> tuple[float, float]:
    """Of the optimum, to the right and to the left, by a program over all activation patterns."""
    inputs, targets = (tensor.numpy() for tensor in data())
    left, here, right = (
        convex_program_optimum(inputs, targets, name, STRENGTH * factor).value for factor in (1.0 - step, 1.0, 1.0 + step)
    )
    return (right - here) / (step * STRENGTH), (here - left) / (step * STRENGTH)


@pytest.mark.parametrize(("loss", "name"), [(HalfSquaredLoss(), "squared"), (nn.HuberLoss(reduction="sum"), "huber")])
def test_the_derivative_is_that_of_the_true_optimum(loss: nn.Module, name: str) -> None:
    right, left = slopes(name, 1e-3)
    result = solved(loss)
    neighbours = [solved(loss, STRENGTH * factor).certificate for factor in (0.99, 1.01)]
    found = path_decay_sensitivity(result.net, *data(), loss=loss, certificate=result.certificate, neighbours=neighbours)
    assert right - 1e-5 <= found.penalty <= left + 1e-5
    assert found.lower <= left
    assert right <= found.upper
    assert found.upper - found.lower <= 0.05 * found.penalty
    assert found.optimum == result.certificate.primal_value
    assert "proven in" in str(found)


def test_the_penalties_of_neighbours_bracket_it() -> None:
    results = [solved(HalfSquaredLoss(), STRENGTH * factor) for factor in (0.9, 1.0, 1.1)]
    weaker, here, stronger = (
        path_decay_sensitivity(r.net, *data(), loss=HalfSquaredLoss(), certificate=r.certificate) for r in results
    )
    assert stronger.penalty < here.penalty < weaker.penalty
    assert stronger.upper < here.lower <= here.penalty <= here.upper < weaker.lower
    change = weaker.optimum - here.optimum, stronger.optimum - here.optimum
    assert weaker.penalty > change[0] / (-0.1 * STRENGTH) > here.penalty > change[1] / (0.1 * STRENGTH) > stronger.penalty


def test_several_outputs_have_the_penalty_as_the_derivative_too() -> None:
    inputs, targets = data()
    targets = torch.cat([targets, inputs[:, :1] - 0.5 * targets.square()], dim=1)
    net = ParallelNet(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 2, bias=False), num_branches=2, dtype=torch.float64)
    results = [
        optimize_to_certificate(net, inputs, targets, loss=HalfSquaredLoss(), path_decay=STRENGTH * factor, rtol=1e-5)
        for factor in (0.98, 1.0, 1.02)
    ]
    weaker, here, stronger = results
    found = path_decay_sensitivity(here.net, inputs, targets, loss=HalfSquaredLoss(), certificate=here.certificate)
    change = (stronger.certificate.primal_value - weaker.certificate.primal_value) / (0.04 * STRENGTH)
    assert found.lower <= found.penalty <= found.upper
    assert found.penalty == pytest.approx(change, rel=1e-2)
    optimum = differentiable_optimum(here.net, inputs, targets, loss=HalfSquaredLoss(), path_decay=STRENGTH)
    assert found.lower <= optimum.penalty().item() <= found.upper


def test_a_loose_certificate_gives_a_wide_interval_around_the_truth() -> None:
    right, left = slopes("squared", 1e-3)
    net = relu(40)
    certificate = certify(net, *data(), loss=HalfSquaredLoss(), path_decay=STRENGTH)
    assert certificate.status is CertificateStatus.GAP_OPEN
    found = path_decay_sensitivity(net, *data(), loss=HalfSquaredLoss(), certificate=certificate)
    assert found.lower <= right <= left <= found.upper < math.inf
    nothing = dataclasses.replace(certificate, dual_point=None, dual_bound=-math.inf)
    vacuous = path_decay_sensitivity(net, *data(), loss=HalfSquaredLoss(), certificate=nothing)
    assert vacuous.lower == 0.0
    assert vacuous.upper >= found.upper


def test_certificates_of_something_else_are_refused() -> None:
    result = solved(HalfSquaredLoss(), rtol=1e-2)
    inputs, targets = data()
    with pytest.raises(InvalidInputError, match="expected the certificate of this network"):
        path_decay_sensitivity(result.net, inputs, targets + 1.0, loss=HalfSquaredLoss(), certificate=result.certificate)
