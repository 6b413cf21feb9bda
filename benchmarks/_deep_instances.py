"""Residuals of really trained parallel networks of three and four layers, on planted and on real data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torch_strongdual import ParallelNet, PathAdamW, max_path_decay
from torch_strongdual.losses import HalfSquaredLoss

__all__ = ["DeepCase", "TrainedNet", "deep_cases", "trained"]

FloatArray = NDArray[np.float64]

_NUM_BRANCHES, _WIDTH = 40, 4
_DIABETES = {2: ("bmi", "s5"), 3: ("bmi", "bp", "s5"), 5: ("sex", "bmi", "bp", "s3", "s5")}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Data:
    """Inputs (n, d), targets as the loss takes them, and the loss."""

    inputs: Tensor
    targets: Tensor
    loss: nn.Module
    num_outputs: int


@dataclass(frozen=True, kw_only=True)
class DeepCase:
    """A network to be trained.

    Args:
        name: Of the data.
        data: Loads or draws them.
        num_layers: Linear layers of a branch.
        share: ``path_decay`` relative to the strength from which on the zero network is optimal.
        is_quick: Whether it is part of the quick run.
    """

    name: str
    data: Callable[[], _Data]
    num_layers: int
    share: float
    is_quick: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedNet:
    """What training ended with.

    Args:
        net: Float64.
        inputs: (n, d).
        targets: As the loss takes them.
        loss: The loss.
        path_decay: What it was trained with: the dual norm at the optimum.
        residual: Minus the gradient of the loss in the outputs, (n, c).
    """

    net: ParallelNet
    inputs: Tensor
    targets: Tensor
    loss: nn.Module
    path_decay: float
    residual: Tensor


def deep_cases() -> list[DeepCase]:
    """Three layers at weak regularisation, four layers at twice that."""
    sources: dict[str, Callable[[], _Data]] = {
        "planted 100 x 2, noise 0.1": lambda: _planted(100, 2, 0.1),
        "planted 100 x 3, noise 0.5": lambda: _planted(100, 3, 0.5),
        "planted 300 x 4, noise 0.1": lambda: _planted(300, 4, 0.1),
        **{f"diabetes 442 x {d}": lambda d=d: _diabetes(d) for d in _DIABETES},
        "iris petals + 1, 3 classes": _iris,
        "wine 178 x 4, alcohol": _wine,
        "breast cancer 569 x 3, 2 classes": _breast_cancer,
    }
    return [
        DeepCase(name=name, data=data, num_layers=layers, share=share, is_quick="x 2, noise" in name)
        for name, data in sources.items()
        for layers, share in ((3, 0.05), (4, 0.1))
    ]


def trained(case: DeepCase, *, num_steps: int, seconds: float) -> TrainedNet:
    """Train with ``PathAdamW`` on the full batch, the learning rate falling to zero; ``seconds`` to find its path decay."""
    torch.manual_seed(0)
    data = case.data()
    widths = [data.inputs.shape[1], *(_WIDTH,) * (case.num_layers - 2), 1]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out, bias=False), nn.ReLU()]
    net = ParallelNet(*layers, nn.Linear(1, data.num_outputs, bias=False), num_branches=_NUM_BRANCHES).double()
    largest = max_path_decay(net, data.inputs, data.targets, loss=data.loss, time_budget=seconds).lower
    path_decay = case.share * largest
    optimizer = PathAdamW(net.path_param_groups(path_decay=path_decay), lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        optimizer.zero_grad()
        data.loss(net(data.inputs), data.targets).backward()
        optimizer.step()
        schedule.step()
    outputs = net(data.inputs).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(data.loss(outputs, data.targets), outputs)
    return TrainedNet(
        net=net, inputs=data.inputs, targets=data.targets, loss=data.loss, path_decay=path_decay, residual=-gradient
    )


def _standardised(values: FloatArray) -> FloatArray:
    scaled: FloatArray = (values - values.mean(axis=0)) / values.std(axis=0)
    return scaled


def _regression(inputs: FloatArray, targets: FloatArray) -> _Data:
    column = torch.from_numpy(_standardised(targets))[:, None]
    return _Data(inputs=torch.from_numpy(inputs), targets=column, loss=HalfSquaredLoss(), num_outputs=1)


def _planted(num_samples: int, num_columns: int, noise: float) -> _Data:
    """Three branches of three layers with three hidden units, and noise relative to what they give."""
    generator = np.random.default_rng([num_samples, num_columns])
    inputs = generator.standard_normal((num_samples, num_columns))
    clean = np.zeros(num_samples)
    for _ in range(3):
        hidden = np.maximum(inputs @ generator.standard_normal((num_columns, 3)), 0.0) @ generator.standard_normal(3)
        clean += np.maximum(hidden, 0.0) * generator.choice([-1.0, 1.0])
    return _regression(inputs, clean + noise * clean.std() * generator.standard_normal(num_samples))


def _diabetes(num_columns: int) -> _Data:
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes()
    columns = [bunch.feature_names.index(name) for name in _DIABETES[num_columns]]
    return _regression(_standardised(bunch.data[:, columns]), bunch.target)


def _iris() -> _Data:
    from sklearn.datasets import load_iris

    features, labels = load_iris(return_X_y=True)
    inputs = np.hstack([_standardised(features[:, 2:]), np.ones((len(features), 1))])
    loss = nn.CrossEntropyLoss(reduction="sum")
    return _Data(inputs=torch.from_numpy(inputs), targets=torch.from_numpy(labels), loss=loss, num_outputs=3)


def _wine() -> _Data:
    """Alcohol from malic acid, magnesium, colour intensity and proline."""
    from sklearn.datasets import load_wine

    columns = load_wine().data
    return _regression(_standardised(columns[:, [1, 4, 9, 12]]), columns[:, 0])


def _breast_cancer() -> _Data:
    """Mean radius, mean texture and mean smoothness; logistic loss."""
    from sklearn.datasets import load_breast_cancer

    features, labels = load_breast_cancer(return_X_y=True)
    targets = torch.from_numpy(labels).double()[:, None]
    loss = nn.BCEWithLogitsLoss(reduction="sum")
    return _Data(inputs=torch.from_numpy(_standardised(features[:, [0, 1, 4]])), targets=targets, loss=loss, num_outputs=1)
