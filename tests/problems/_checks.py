"""Objectives, dual norms and random networks in plain NumPy, independent of the library's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.problems import PlantedProblem

FloatArray = NDArray[np.float64]


def masks_of(problem: PlantedProblem) -> FloatArray:  # shape: (num_branches, num_samples)
    """Products of the gates of each branch, recomputed from the gate vectors."""
    inputs = problem.inputs.numpy()
    masks = np.ones((len(problem.optimal_weights[0]), len(inputs)))
    for activation in problem.spec.activations:
        for vectors in activation.gate_vectors:
            masks *= vectors.numpy() @ inputs.T >= 0
    return masks


def primal_value(problem: PlantedProblem, weights: Sequence[FloatArray], bias: FloatArray | None) -> float:
    """Training objective in its product form."""
    inputs, targets = problem.inputs.numpy(), problem.targets.numpy()
    outputs = np.zeros_like(targets) + (0.0 if bias is None else bias)
    penalty = 0.0
    for k, mask in enumerate(masks_of(problem)):
        hidden = inputs
        for layer, slope in zip(weights, problem.spec.negative_slopes, strict=False):
            hidden = hidden @ layer[k].T
            hidden = np.maximum(hidden, 0) + slope * np.minimum(hidden, 0)
        outputs = outputs + (mask[:, None] * hidden) @ weights[-1][k].T
        penalty += float(np.prod([np.linalg.norm(layer[k]) for layer in weights]))
    squares = (outputs - targets) ** 2
    loss = squares.mean() if problem.loss.reduction == "mean" else squares.sum()
    return float(loss + problem.path_decay * penalty)


def dual_value(problem: PlantedProblem) -> float:
    """Dual objective of the squared error at the problem's dual point."""
    point, targets = problem.dual_point.numpy(), problem.targets.numpy()
    curvature = 2.0 / point.size if problem.loss.reduction == "mean" else 2.0
    return float((point * targets).sum() - (point**2).sum() / (2.0 * curvature))


def optimal_weights(problem: PlantedProblem) -> list[FloatArray]:
    """The optimal network as NumPy arrays."""
    return [weight.numpy() for weight in problem.optimal_weights]


def optimal_bias(problem: PlantedProblem) -> FloatArray | None:
    """The optimal output bias as a NumPy array."""
    return None if problem.optimal_bias is None else problem.optimal_bias.numpy()


def assert_optimal(problem: PlantedProblem, dual_norm: float) -> None:
    """Primal, dual and stated value agree to 1e-12 and the dual point is feasible to 1e-12: a proof of optimality."""
    scale = max(1.0, abs(problem.optimal_value))
    assert abs(primal_value(problem, optimal_weights(problem), optimal_bias(problem)) - problem.optimal_value) <= 1e-12 * scale
    assert abs(dual_value(problem) - problem.optimal_value) <= 1e-12 * scale
    assert abs(dual_norm - problem.path_decay) <= 1e-12 * problem.path_decay
    if problem.spec.output_bias:
        assert np.abs(problem.dual_point.numpy().sum(axis=0)).max() <= 1e-12 * problem.path_decay
    else:
        assert problem.optimal_bias is None


def assert_no_network_is_better(problem: PlantedProblem, seed: int, size: float) -> None:
    """Networks at a distance ``size`` from the optimal one do not get below the optimum."""
    rng = np.random.default_rng(seed)
    weights = [weight + size * rng.standard_normal(weight.shape) for weight in optimal_weights(problem)]
    bias = optimal_bias(problem)
    bias = None if bias is None else bias + size * rng.standard_normal(bias.shape)
    assert primal_value(problem, weights, bias) >= problem.optimal_value * (1.0 - 1e-12)
