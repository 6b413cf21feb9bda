"""Dual points of the benchmark: residuals of trained two-layer ReLU networks, on Gaussian and on real data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.oracles import SphereProblem
from torch_strongdual.certification.oracles.local_ascent import local_maxima
from torch_strongdual.certification.oracles.row_space import RowSpace

__all__ = ["Instance", "ReachCase", "gaussian_instance", "reach_cases"]

FloatArray = NDArray[np.float64]

_WIDTH = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Instance:
    """A dual norm to be bounded.

    Args:
        name: For the tables.
        inputs: (n, d).
        dual_point: (n, c).
        decay: The weight decay it was trained with: the dual norm at the optimum.
    """

    name: str
    inputs: Tensor
    dual_point: Tensor
    decay: float


@dataclass(frozen=True, kw_only=True)
class ReachCase:
    """A row of the reach table.

    Args:
        name: For the table.
        make: Builds the instance.
        rtol: Tolerance of the bound.
        prototype: Cells and seconds of the prototype on an instance of this kind, as far as recorded.
        goal: Seconds asked for, where some were.
        is_quick: Whether it is part of the quick run.
    """

    name: str
    make: Callable[[], Instance]
    rtol: float
    prototype: str
    goal: float | None
    is_quick: bool = False


def gaussian_instance(n: int, d: int, *, num_outputs: int = 1, noise: float = 0.1) -> Instance:
    """Standard normal inputs; targets of unit variance, four ReLU neurons plus noise of ``noise`` times their size."""
    generator = np.random.default_rng([n, d, num_outputs])
    inputs = generator.standard_normal((n, d))
    clean = np.maximum(inputs @ generator.standard_normal((d, 4)), 0.0) @ generator.standard_normal((4, num_outputs))
    targets = clean + noise * clean.std(axis=0) * generator.standard_normal((n, num_outputs))
    return _regression(f"Gaussian {n} x {d}", inputs, (targets - targets.mean(0)) / targets.std(0), 0.05)


def reach_cases() -> list[ReachCase]:
    """The instances named in the project's plan; prototype figures are those of its first, rough version."""

    def gaussian(n: int, d: int, **options: Any) -> Callable[[], Instance]:
        return lambda: gaussian_instance(n, d, **options)

    return [
        ReachCase(name="Gaussian 1000 x 3", make=gaussian(1000, 3), rtol=1e-3, prototype="312, 4 ms", goal=0.005),
        ReachCase(name="Gaussian 1000 x 4", make=gaussian(1000, 4), rtol=1e-3, prototype="1350, 16 ms", goal=0.02),
        ReachCase(name="Gaussian 1000 x 5", make=gaussian(1000, 5), rtol=1e-3, prototype="18e3, 0.17 s", goal=0.25),
        ReachCase(name="Gaussian 500 x 6", make=gaussian(500, 6), rtol=1e-3, prototype="46e3, 0.43 s", goal=0.5, is_quick=True),
        ReachCase(name="Gaussian 100000 x 3", make=gaussian(100_000, 3), rtol=1e-3, prototype="-, 1.1 s", goal=3.0),
        ReachCase(name="Gaussian 100000 x 4", make=gaussian(100_000, 4), rtol=1e-3, prototype="-, 2.9 s", goal=3.0),
        *(
            ReachCase(
                name=f"Gaussian {n} x {d}, noise 1/{share}",
                make=gaussian(n, d, noise=1 / share),
                rtol=1e-3,
                prototype="-",
                goal=None,
            )
            for share in (50, 3)
            for n, d in ((1000, 3), (1000, 4), (1000, 5), (500, 6))
        ),
        ReachCase(name="iris + bias, 3 classes", make=_iris, rtol=1e-3, prototype="-, 10 ms", goal=0.02),
        ReachCase(name="wine 178 x 8, 3 classes", make=_wine, rtol=1e-3, prototype="-, 1.7 s", goal=2.0),
        ReachCase(
            name="Gaussian 500 x 6, 10 outputs",
            make=gaussian(500, 6, num_outputs=10),
            rtol=1e-3,
            prototype="-, 3.7-6.6 s (1 %)",
            goal=8.0,
        ),
        ReachCase(name="Gaussian 500 x 8", make=gaussian(500, 8), rtol=1e-2, prototype="4.3e6, 43 s", goal=45.0),
        ReachCase(name="digits 1797 x 5, 10 classes", make=_digits, rtol=1e-2, prototype="-, 4.8 s (5 %)", goal=10.0),
        ReachCase(name="diabetes 442 x 10, 0.2 beta_max", make=_diabetes, rtol=1e-2, prototype="1.07e6, 14.8 s", goal=15.0),
    ]


def _regression(name: str, inputs: FloatArray, targets: FloatArray, strength: float) -> Instance:
    """Residual for ``|F - Y|^2 / 2``."""
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    return _trained(name, x, lambda outputs: 0.5 * (outputs - y).square().sum(), y.shape[1], strength)


def _classification(name: str, inputs: FloatArray, labels: NDArray[np.int64], strength: float) -> Instance:
    """Softmax residual for the sum of cross-entropies."""
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels)
    classes = int(labels.max()) + 1
    return _trained(name, x, lambda outputs: torch.nn.functional.cross_entropy(outputs, y, reduction="sum"), classes, strength)


def _trained(name: str, inputs: Tensor, loss: Callable[[Tensor], Tensor], num_outputs: int, strength: float) -> Instance:
    """Train with weight decay ``strength * beta_max`` by L-BFGS, and take minus the gradient in the outputs."""
    decay = strength * _largest_value(inputs, _residual(loss, torch.zeros(len(inputs), num_outputs, dtype=torch.float64)))
    width = _WIDTH if len(inputs) <= 5000 else 20
    generator = torch.Generator().manual_seed(0)
    first = 0.1 * torch.randn(inputs.shape[1], width, dtype=torch.float64, generator=generator)
    last = 0.1 * torch.randn(width, num_outputs, dtype=torch.float64, generator=generator)
    weights = [first.requires_grad_(), last.requires_grad_()]
    optimizer = torch.optim.LBFGS(
        weights, max_iter=400, max_eval=1000, tolerance_change=1e-13, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(torch.relu(inputs @ first) @ last) + 0.5 * decay * sum(w.square().sum() for w in weights)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        outputs = torch.relu(inputs @ first) @ last
    return Instance(name=name, inputs=inputs, dual_point=_residual(loss, outputs), decay=decay)


def _residual(loss: Callable[[Tensor], Tensor], outputs: Tensor) -> Tensor:
    outputs = outputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(outputs), outputs)
    return -gradient


def _largest_value(inputs: Tensor, dual_point: Tensor) -> float:
    """Dual norm, estimated by local ascent: good enough to choose a strength by."""
    rows, duals = RowSpace.of(inputs.numpy()).rows, RowSpace.of(dual_point.numpy()).rows
    problem = SphereProblem(rows=rows, duals=duals, linear=np.zeros((rows.shape[1], duals.shape[1])))
    return float(problem.values(local_maxima(problem))[0])


def _standardised(features: FloatArray) -> FloatArray:
    scaled: FloatArray = (features - features.mean(0)) / np.where(features.std(0) > 0, features.std(0), 1.0)
    return scaled


def _principal(features: FloatArray, rank: int) -> FloatArray:
    """Leading principal components, the first of unit variance."""
    left, singular, _ = np.linalg.svd(features - features.mean(0), full_matrices=False)
    components: FloatArray = left[:, :rank] * singular[:rank] / singular[0] * np.sqrt(len(features))
    return components


def _iris() -> Instance:
    from sklearn.datasets import load_iris

    features, labels = load_iris(return_X_y=True)
    return _classification("iris", np.hstack([_standardised(features), np.ones((len(features), 1))]), labels, 0.05)


def _wine() -> Instance:
    from sklearn.datasets import load_wine

    features, labels = load_wine(return_X_y=True)
    return _classification("wine", _principal(_standardised(features), 8), labels, 0.05)


def _digits() -> Instance:
    from sklearn.datasets import load_digits

    features, labels = load_digits(return_X_y=True)
    return _classification("digits", _principal(features, 5), labels, 0.05)


def _diabetes() -> Instance:
    from sklearn.datasets import load_diabetes

    features, targets = load_diabetes(return_X_y=True)
    return _regression("diabetes", _standardised(features), _standardised(targets[:, None]), 0.2)
