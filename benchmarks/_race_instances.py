"""Training problems of the race: two-layer ReLU networks on real, synthetic and planted data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from torch_strongdual.certification import max_path_decay
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import ParallelNet
from torch_strongdual.problems import PlantedProblem, planted_orthonormal_relu, planted_rank_one_relu

__all__ = [
    "Case",
    "RaceInstance",
    "gaussian_regression",
    "instance_of",
    "network",
    "race_cases",
    "spiral",
    "standardised_diabetes",
]

FloatArray = NDArray[np.float64]

_DIABETES = {3: ["bmi", "bp", "s5"], 5: ["sex", "bmi", "bp", "s3", "s5"]}


@dataclass(frozen=True, kw_only=True, eq=False)
class RaceInstance:
    """``loss(sum_k relu(x'u_k) v_k) + decay * sum_k ||u_k|| ||v_k||`` over any number of neurons.

    Args:
        name: For the tables.
        inputs: (n, d).
        targets: (n, c); for softmax one-hot.
        loss: ``"squared"`` (half the squared distance) or ``"softmax"`` (cross-entropy, summed).
        decay: Strength of the penalty.
        optimum: Where it is known, else NaN.
    """

    name: str
    inputs: FloatArray
    targets: FloatArray
    loss: str
    decay: float
    optimum: float = math.nan

    @property
    def torch_loss(self) -> nn.Module:
        """The loss as this library takes it."""
        return HalfSquaredLoss() if self.loss == "squared" else nn.CrossEntropyLoss(reduction="sum")


@dataclass(frozen=True, kw_only=True)
class Case:
    """An instance to be made.

    Args:
        name: Its name.
        make: Builds it.
        seconds: Limit of each method.
        is_quick: Whether it is part of the quick run.
    """

    name: str
    make: Callable[[], RaceInstance]
    seconds: float
    is_quick: bool = False


def race_cases() -> list[Case]:
    """All instances; the weight decay is 0.05 of the largest useful one unless the name says otherwise."""
    return [
        Case(name="diabetes 442 x 3", make=lambda: _diabetes(3, 0.05), seconds=60.0, is_quick=True),
        Case(name="diabetes 442 x 5", make=lambda: _diabetes(5, 0.05), seconds=60.0),
        Case(name="diabetes 442 x 10, 0.2", make=lambda: _diabetes(10, 0.2), seconds=60.0),
        Case(name="breast_cancer 569 x 30, 0.2", make=_breast_cancer, seconds=60.0),
        Case(name="iris + 1, 3 classes, softmax", make=_iris, seconds=60.0),
        *(
            Case(name=f"spiral {n} + 1, 3 classes", make=partial(_spiral, n), seconds=20.0, is_quick=n == 15)
            for n in (15, 60, 150)
        ),
        Case(name="planted, orthonormal rows 40 x 50", make=_orthonormal, seconds=20.0),
        Case(name="planted, rank one 100 x 4", make=_rank_one, seconds=20.0, is_quick=True),
    ]


def network(instance: RaceInstance, *, seed: int = 0) -> ParallelNet:
    """A start for this library: one random branch."""
    torch.manual_seed(seed)
    first, last = (instance.inputs.shape[1], 1), (1, instance.targets.shape[1])
    return ParallelNet(
        nn.Linear(*first, bias=False), nn.ReLU(), nn.Linear(*last, bias=False), num_branches=1, dtype=torch.float64
    )


def gaussian_regression(n: int, d: int, *, num_outputs: int = 1, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    """Standard normal inputs; targets of unit variance, four ReLU neurons plus a tenth of their size of noise."""
    generator = np.random.default_rng([n, d, num_outputs, seed])
    inputs = generator.standard_normal((n, d))
    clean = np.maximum(inputs @ generator.standard_normal((d, 4)), 0.0) @ generator.standard_normal((4, num_outputs))
    return inputs, _standardised(clean + 0.1 * clean.std(axis=0) * generator.standard_normal((n, num_outputs)))


def standardised_diabetes(num_columns: int = 10) -> tuple[FloatArray, FloatArray]:
    """All 442 rows; three, five or all ten columns."""
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    chosen = _DIABETES.get(num_columns, list(data.feature_names))
    columns = [data.feature_names.index(name) for name in chosen]
    return _standardised(data.data[:, columns]), _standardised(data.target[:, None])


def spiral(n: int, *, with_ones: bool) -> tuple[FloatArray, FloatArray]:
    """Three interleaved arms in the plane, n points in all, one-hot classes; optionally a column of ones."""
    generator = np.random.default_rng(n)
    radius = np.tile(np.linspace(0.0, 1.0, n // 3 + 1)[1:], 3)
    arms = np.repeat(np.arange(3), n // 3)
    angle = 4.0 * arms + 4.0 * radius + 0.2 * generator.standard_normal(len(arms))
    inputs = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1)
    return (np.hstack([inputs, np.ones((len(arms), 1))]) if with_ones else inputs), np.eye(3)[arms]


def _diabetes(num_columns: int, fraction: float) -> RaceInstance:
    inputs, targets = standardised_diabetes(num_columns)
    return instance_of(f"diabetes 442 x {num_columns}", inputs, targets, "squared", fraction)


def _breast_cancer() -> RaceInstance:
    from sklearn.datasets import load_breast_cancer

    features, labels = load_breast_cancer(return_X_y=True)
    return instance_of("breast_cancer", _standardised(features), 2.0 * labels[:, None] - 1.0, "squared", 0.2)


def _iris() -> RaceInstance:
    from sklearn.datasets import load_iris

    features, labels = load_iris(return_X_y=True)
    inputs = np.hstack([_standardised(features), np.ones((len(features), 1))])
    return instance_of("iris", inputs, np.eye(3)[labels], "softmax", 0.05)


def _spiral(n: int) -> RaceInstance:
    return instance_of(f"spiral {n}", *spiral(n, with_ones=True), "squared", 0.05)


def _orthonormal() -> RaceInstance:
    generator = torch.Generator().manual_seed(0)
    return _planted("orthonormal", planted_orthonormal_relu(40, 50, reduction="sum", generator=generator))


def _rank_one() -> RaceInstance:
    generator = torch.Generator().manual_seed(0)
    return _planted("rank one", planted_rank_one_relu(100, 4, reduction="sum", generator=generator))


def _planted(name: str, problem: PlantedProblem) -> RaceInstance:
    """Sums of squares there, half of them here."""
    return RaceInstance(
        name=name,
        inputs=problem.inputs.numpy(),
        targets=problem.targets.numpy(),
        loss="squared",
        decay=0.5 * problem.path_decay,
        optimum=0.5 * problem.optimal_value,
    )


def instance_of(name: str, inputs: FloatArray, targets: FloatArray, loss: str, fraction: float) -> RaceInstance:
    """With ``fraction`` of the largest useful weight decay (its attained lower bound)."""
    draft = RaceInstance(name=name, inputs=inputs, targets=targets, loss=loss, decay=1.0)
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    largest = max_path_decay(network(draft), x, y, loss=draft.torch_loss, time_budget=2.0)
    return RaceInstance(name=name, inputs=inputs, targets=targets, loss=loss, decay=fraction * largest.lower)


def _standardised(features: FloatArray) -> FloatArray:
    scaled: FloatArray = (features - features.mean(axis=0)) / features.std(axis=0)
    return scaled
