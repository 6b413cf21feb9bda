"""A lower estimate of the dual norm of any architecture: the best of many random branches, then hill climbing. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def branch_value(
    inputs: FloatArray,  # (n, d)
    duals: FloatArray,  # (n, c)
    weights: Sequence[FloatArray],  # hidden layers, (out, in)
    slopes: Sequence[float],
    mask: FloatArray | None = None,  # (n,)
) -> float:
    """``||duals' features||_F`` of one branch after scaling its layers to norm one; 0 if a layer is zero."""
    hidden = inputs
    for weight, slope in zip(weights, slopes, strict=True):
        norm = float(np.linalg.norm(weight))
        if norm == 0.0:
            return 0.0
        hidden = hidden @ (weight / norm).T
        hidden = np.where(hidden >= 0, hidden, slope * hidden)
    if mask is not None:
        hidden = hidden * mask[:, None]
    return float(np.linalg.norm(duals.T @ hidden))


def sampled_dual_norm(
    inputs: FloatArray,  # (n, d)
    duals: FloatArray,  # (n, c)
    *,
    hidden_widths: Sequence[int],
    slopes: Sequence[float],
    masks: FloatArray | None = None,  # (num_branches, n)
    num_samples: int = 200,
    num_refined: int = 3,
    num_steps: int = 200,
    seed: int = 0,
) -> float:
    """Never above the dual norm, by construction: a value some unit-norm branch has.

    The last weight of a branch has Frobenius norm one too, so what counts is the Frobenius norm of ``duals' features``.
    """
    generator = np.random.default_rng(seed)
    widths = [inputs.shape[1], *hidden_widths]

    def draw() -> list[FloatArray]:
        layers = [generator.standard_normal((out, fan_in)) for fan_in, out in pairwise(widths)]
        if generator.random() < 0.5:  # rank one: all units but the first of each layer are dead
            layers = [np.where(np.arange(len(w))[:, None] == 0, w, 0.0) for w in layers]
        return layers

    found: list[tuple[float, int, list[FloatArray]]] = []
    number_of_masks = 1 if masks is None else len(masks)
    for index in range(num_samples):
        gate = index % number_of_masks
        weights = draw()
        found.append((branch_value(inputs, duals, weights, slopes, None if masks is None else masks[gate]), gate, weights))
    found.sort(key=lambda item: -item[0])
    best = found[0][0]
    for start, gate, start_weights in found[:num_refined]:
        value, weights, length = start, start_weights, 0.5
        mask = None if masks is None else masks[gate]
        for _ in range(num_steps):
            moved = [w / max(float(np.linalg.norm(w)), 1e-300) + length * generator.standard_normal(w.shape) for w in weights]
            tried = branch_value(inputs, duals, moved, slopes, mask)
            if tried > value:
                value, weights = tried, moved
            else:
                length = max(0.97 * length, 1e-6)
        best = max(best, value)
    return best
