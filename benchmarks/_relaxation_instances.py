"""Training problems for relaxations: more samples than dimensions, too many dimensions for boxes."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks._race_instances import gaussian_regression

__all__ = ["RelaxationCase", "relaxation_cases", "training_data"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RelaxationCase:
    """One problem.

    Args:
        data: A key of the data sets below.
        num_samples: Chosen at random from the data set.
        rank: Number of leading principal components kept.
        fraction: Path decay, in units of the largest useful one.
        is_quick: Whether it is part of the quick run.
    """

    data: str
    num_samples: int
    rank: int
    fraction: float
    is_quick: bool = False


def relaxation_cases() -> list[RelaxationCase]:
    """Gaussian and real data at two strengths; beyond 200 samples at the stronger one only, but for ranks that boxes reach."""
    chosen = [
        ("Gaussian", 50, 12),
        ("Gaussian", 50, 20),
        ("Gaussian", 100, 20),
        ("breast_cancer", 100, 20),
        ("digits", 100, 20),
        ("diabetes, products", 100, 20),
        ("Gaussian", 100, 12),
        ("Gaussian", 100, 40),
        ("Gaussian", 200, 20),
        ("Gaussian", 500, 20),
        ("digits", 100, 40),
        ("breast_cancer", 200, 20),
    ]
    cases = [
        RelaxationCase(data=data, num_samples=n, rank=rank, fraction=fraction, is_quick=(n, rank, fraction) == (50, 20, 0.2))
        for data, n, rank in chosen
        for fraction in (0.2, 0.05)
        if n <= 200 or fraction == 0.2
    ]
    with_boxes = [
        ("Gaussian", 500, 10, 0.05),
        ("Gaussian", 500, 9, 0.05),
        ("Gaussian", 300, 9, 0.05),
        ("diabetes", 442, 10, 0.05),
        ("diabetes", 442, 10, 0.1),
        ("diabetes", 100, 10, 0.05),
    ]
    return cases + [
        RelaxationCase(data=data, num_samples=n, rank=rank, fraction=fraction) for data, n, rank, fraction in with_boxes
    ]


def training_data(data: str, num_samples: int, rank: int) -> tuple[FloatArray, FloatArray]:
    """Standardised principal coordinates and targets of unit variance, shapes (n, rank) and (n, 1)."""
    if data == "Gaussian":
        return gaussian_regression(num_samples, rank)
    features, targets = _DATA[data]()
    generator = np.random.default_rng([zlib.crc32(data.encode()), num_samples])
    chosen = generator.permutation(len(features))[:num_samples]
    features, targets = features[chosen], targets[chosen]
    features = _standardised(features[:, features.std(axis=0) > 0.0])
    _, sizes, axes = np.linalg.svd(features, full_matrices=False)
    if len(sizes) < rank or sizes[rank - 1] < 1e-8 * sizes[0]:
        raise ValueError(f"{data}: {num_samples} samples have no rank {rank}")
    return features @ axes[:rank].T, _standardised(targets[:, None])


def _breast_cancer() -> tuple[FloatArray, FloatArray]:
    from sklearn.datasets import load_breast_cancer

    features, labels = load_breast_cancer(return_X_y=True)
    return features, labels.astype(np.float64)


def _digits() -> tuple[FloatArray, FloatArray]:
    """Whether a digit is even: no direction of the data says so by itself."""
    from sklearn.datasets import load_digits

    features, labels = load_digits(return_X_y=True)
    return features, (labels % 2).astype(np.float64)


def _diabetes_products() -> tuple[FloatArray, FloatArray]:
    """The ten columns with all their squares and products."""
    from sklearn.datasets import load_diabetes

    features, targets = load_diabetes(return_X_y=True)
    features = _standardised(features)
    first, second = np.triu_indices(features.shape[1])
    return np.hstack([features, features[:, first] * features[:, second]]), targets.astype(np.float64)


def _diabetes() -> tuple[FloatArray, FloatArray]:
    from sklearn.datasets import load_diabetes

    features, targets = load_diabetes(return_X_y=True)
    return features, targets.astype(np.float64)


def _wine() -> tuple[FloatArray, FloatArray]:
    """The first cultivar against the others."""
    from sklearn.datasets import load_wine

    features, labels = load_wine(return_X_y=True)
    return features, (labels == 0).astype(np.float64)


_DATA: dict[str, Callable[[], tuple[FloatArray, FloatArray]]] = {
    "breast_cancer": _breast_cancer,
    "diabetes": _diabetes,
    "digits": _digits,
    "diabetes, products": _diabetes_products,
    "wine": _wine,
}


def _standardised(features: FloatArray) -> FloatArray:
    scaled: FloatArray = (features - features.mean(axis=0)) / features.std(axis=0)
    return scaled
