"""Every certificate against the exact optimum of the training problem, by complete enumeration and an independent solver."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.references.convex_program import (
    convex_program_optimum,
    gated_program_optimum,
    linear_program_optimum,
)
from torch_strongdual.certification import Certificate, certify, max_path_decay
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import GatedReLU, ParallelNet

SOLVER_ERROR = 1e-7  # relative to 1 + optimum: Clarabel is asked for 1e-10


LOSSES: dict[str, nn.Module] = {
    "squared": HalfSquaredLoss(),
    "logistic": nn.BCEWithLogitsLoss(reduction="sum"),
    "huber": nn.HuberLoss(reduction="sum"),
    "absolute": nn.L1Loss(reduction="sum"),
    "softmax": nn.CrossEntropyLoss(reduction="sum"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """A random problem."""

    inputs: Tensor
    targets: Tensor
    loss: str
    bias: bool
    fraction: float


def draw(generator: np.random.Generator, loss: str, *, num_outputs: int = 1, max_features: int = 3) -> Drawn:
    n, d = int(generator.integers(2, 8)), int(generator.integers(1, max_features + 1))
    inputs = generator.standard_normal((n, d))
    if generator.random() < 0.3:
        inputs = np.round(2 * inputs) / 2
        inputs[generator.integers(n)] = inputs[0]  # a duplicate
    if generator.random() < 0.2:
        inputs[generator.integers(n)] = 0.0
    if generator.random() < 0.2:
        inputs[:, 0] *= 1e3
    targets = generator.standard_normal((n, num_outputs))
    if loss == "logistic":
        targets = (targets > 0).astype(float)
    if loss == "softmax":
        labels = generator.integers(0, num_outputs, n)
        return Drawn(
            inputs=torch.from_numpy(inputs), targets=torch.from_numpy(labels), loss=loss,
            bias=bool(generator.random() < 0.4), fraction=float(generator.uniform(0.03, 0.7)),
        )  # fmt: skip
    return Drawn(
        inputs=torch.from_numpy(inputs),
        targets=torch.from_numpy(targets),
        loss=loss,
        bias=bool(generator.random() < 0.4),
        fraction=float(generator.uniform(0.03, 0.7)),
    )


def certified(drawn: Drawn, net: ParallelNet, *, train_steps: int) -> tuple[Certificate, float]:
    """Train a little, certify; returns the certificate and the path decay used."""
    loss = LOSSES[drawn.loss]
    net.double()
    limit = max_path_decay(net, drawn.inputs, drawn.targets, loss=loss)
    beta = drawn.fraction * limit.lower
    if beta == 0.0:
        beta = 1e-3
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-2)
    for _ in range(train_steps):
        optimizer.zero_grad()
        (loss(net(drawn.inputs), drawn.targets) + beta * net.path_penalty("product")).backward()
        optimizer.step()
    return certify(net, drawn.inputs, drawn.targets, loss=loss, path_decay=beta, rtol=1e-3, time_budget=20.0), beta


def check(certificate: Certificate, optimum: float) -> float:
    """Weak duality on both sides of the optimum; returns the relative looseness of the bound."""
    error = SOLVER_ERROR * (1.0 + abs(optimum))
    assert certificate.dual_bound <= optimum + error
    assert certificate.primal_value >= optimum - error
    assert certificate.dual_bound <= certificate.primal_value
    return (optimum - certificate.dual_bound) / (1e-6 + abs(optimum))


def relu_campaign(loss: str, number: int, seed: int) -> list[float]:
    generator = np.random.default_rng(seed)
    looseness = []
    for index in range(number):
        drawn = draw(generator, loss)
        slope = float(generator.choice([0.0, 0.0, 0.2]))
        torch.manual_seed(index)
        net = ParallelNet(
            nn.Linear(drawn.inputs.shape[1], 1, bias=False),
            nn.LeakyReLU(slope) if slope else nn.ReLU(),
            nn.Linear(1, 1, bias=drawn.bias),
            num_branches=6,
        )
        certificate, beta = certified(drawn, net, train_steps=int(generator.choice([0, 10, 200])))
        truth = convex_program_optimum(
            drawn.inputs.numpy(), drawn.targets.numpy(), drawn.loss, beta, slope=slope, bias=drawn.bias
        )
        looseness.append(check(certificate, truth.value))
    return looseness


def masked_campaign(loss: str, number: int, seed: int, *, gated: bool) -> list[float]:
    generator = np.random.default_rng(seed)
    looseness = []
    for index in range(number):
        num_outputs = 3 if loss == "softmax" else int(generator.integers(1, 4))
        drawn = draw(generator, loss, num_outputs=num_outputs)
        torch.manual_seed(index)
        d = drawn.inputs.shape[1]
        middle = [GatedReLU(d)] if gated else [nn.Linear(4, 3, bias=False)]
        net = ParallelNet(
            nn.Linear(d, 4, bias=False),
            *middle,
            nn.Linear(4 if gated else 3, num_outputs, bias=drawn.bias),
            num_branches=5,
        )
        certificate, beta = certified(drawn, net, train_steps=int(generator.choice([0, 200])))
        targets = drawn.targets.numpy()
        targets = np.eye(num_outputs)[targets] if loss == "softmax" else targets
        if gated:
            masks = net.branch_spec.gate_masks(drawn.inputs)
            assert masks is not None
            truth = gated_program_optimum(drawn.inputs.numpy(), targets, masks.numpy(), loss, beta, bias=drawn.bias)
        else:
            truth = linear_program_optimum(drawn.inputs.numpy(), targets, loss, beta, bias=drawn.bias)
        looseness.append(check(certificate, truth.value))
    return looseness


@pytest.mark.parametrize("loss", ["squared", "logistic", "huber", "absolute"])
def test_two_layer_relu_against_complete_enumeration(loss: str) -> None:
    looseness = relu_campaign(loss, 5, seed=0)
    assert np.median(looseness) <= 5e-3, looseness


@pytest.mark.parametrize("gated", [False, True], ids=["linear", "gated"])
@pytest.mark.parametrize("loss", ["squared", "softmax", "huber"])
def test_linear_and_gated_against_a_convex_solver(loss: str, gated: bool) -> None:
    looseness = masked_campaign(loss, 4, seed=1, gated=gated)
    assert np.median(looseness) <= 5e-3, looseness


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["squared", "logistic", "huber", "absolute"])
def test_two_layer_relu_against_complete_enumeration_at_length(loss: str) -> None:
    assert np.median(relu_campaign(loss, 150, seed=2)) <= 5e-3


@pytest.mark.slow
@pytest.mark.parametrize("gated", [False, True], ids=["linear", "gated"])
@pytest.mark.parametrize("loss", ["squared", "softmax", "huber", "logistic", "absolute"])
def test_linear_and_gated_against_a_convex_solver_at_length(loss: str, gated: bool) -> None:
    assert np.median(masked_campaign(loss, 60, seed=3, gated=gated)) <= 5e-3
