from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from torch_strongdual.certification.oracles._depth.dual_objectives import (
    AbstractDualObjective,
    EntropyObjective,
    QuadraticObjective,
)
from torch_strongdual.losses import AbstractDualLoss, HuberFamilyLoss, LogisticLoss


def cases(seed: int) -> list[tuple[AbstractDualObjective, AbstractDualLoss]]:
    """Objectives beside the losses they belong to."""
    generator = np.random.default_rng(seed)
    soft, goals = generator.uniform(size=12), generator.standard_normal(12)
    labels = (soft > 0.5).astype(np.float64)
    weighted = LogisticLoss(torch.from_numpy(soft)[:, None], normalizer=1, positive_weight=torch.tensor(3.0))
    huber = HuberFamilyLoss(torch.from_numpy(goals)[:, None], normalizer=1, width=0.7, slope_bound=1.5)
    squared = HuberFamilyLoss(torch.from_numpy(goals)[:, None], normalizer=1, width=0.7, slope_bound=math.inf)
    return [
        (EntropyObjective(positive=3.0 * soft, negative=1.0 - soft), weighted),
        (
            EntropyObjective(positive=labels, negative=1.0 - labels),
            LogisticLoss(torch.from_numpy(labels)[:, None], normalizer=1),
        ),
        (QuadraticObjective(targets=goals, curvature=0.7, slope_bound=1.5), huber),
        (QuadraticObjective(targets=goals, curvature=0.7, slope_bound=math.inf), squared),
    ]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("seed", range(3))
def test_objectives_are_those_of_the_losses(number: int, seed: int) -> None:
    objective, loss = cases(seed)[number]
    outputs = np.random.default_rng(seed + 10).standard_normal((12, 1))
    point = loss.residual(torch.from_numpy(outputs))
    duals = point[:, 0].numpy()
    assert objective.value(duals) == pytest.approx(loss.dual_objective(point), rel=1e-12)
    for most in (0.3, 1.0, 7.0):
        best = loss.dual_objective(loss.best_scale(point, most) * point)
        assert objective.scaled_value(duals, most) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("number", range(4))
def test_nearby_objectives_agree_to_second_order_and_stay_in_the_domain(number: int) -> None:
    objective, loss = cases(0)[number]
    generator = np.random.default_rng(4)
    centre = 0.8 * loss.residual(torch.from_numpy(generator.standard_normal((12, 1))))[:, 0].numpy()
    near = objective.near(centre)
    assert (near.lower < centre).all()
    assert (centre < near.upper).all()
    step = np.clip(1e-3 * generator.standard_normal(12), near.lower - centre, near.upper - centre) * np.abs(centre)

    def quadratic(duals: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        return float(near.slopes @ duals - 0.5 * near.curvatures @ duals**2)

    predicted = quadratic(centre + step) - quadratic(centre)
    assert objective.value(centre + step) - objective.value(centre) == pytest.approx(predicted, rel=1e-2, abs=1e-12)
    for corner in (near.lower, near.upper):
        if np.isfinite(corner).all():
            assert math.isfinite(loss.dual_objective(torch.from_numpy(corner)[:, None]))
