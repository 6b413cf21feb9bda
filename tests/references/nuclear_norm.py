"""min 1/2 ||X Z - Y||_F^2 + beta ||Z||_*, the problem that a path-regularised parallel linear network solves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def nuclear_norm_objective(inputs: Array, targets: Array, solution: Array, beta: float) -> float:
    singular_values = np.linalg.svd(solution, compute_uv=False)
    return float(0.5 * np.sum((inputs @ solution - targets) ** 2) + beta * singular_values.sum())


def nuclear_norm_optimum(inputs: Array, targets: Array, beta: float, rtol: float = 1e-12) -> float:
    """Accelerated proximal gradient with function restart, until the duality gap is below ``rtol`` times the value."""
    step = 1 / np.linalg.norm(inputs, 2) ** 2
    current = np.zeros((inputs.shape[1], targets.shape[1]))
    extrapolated, inertia = current, 1.0
    for _ in range(100_000):
        u, s, vt = np.linalg.svd(extrapolated - step * inputs.T @ (inputs @ extrapolated - targets), full_matrices=False)
        following = u @ np.diag(np.maximum(s - step * beta, 0)) @ vt
        value = nuclear_norm_objective(inputs, targets, following, beta)
        if value > nuclear_norm_objective(inputs, targets, current, beta):
            inertia = 1.0
        next_inertia = (1 + np.sqrt(1 + 4 * inertia**2)) / 2
        extrapolated = following + (inertia - 1) / next_inertia * (following - current)
        current, inertia = following, next_inertia
        residual = targets - inputs @ current
        dual = residual * min(1.0, beta / np.linalg.norm(inputs.T @ residual, 2))
        if value - np.sum(dual * targets) + 0.5 * np.sum(dual**2) <= rtol * value:
            return value
    raise RuntimeError("the reference solver did not converge")
