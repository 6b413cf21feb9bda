"""Path penalties by their definitions: loops over branches and, for the l2 path norm, over single paths."""

from __future__ import annotations

import functools
import itertools

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def penalty_of_branch(layers: list[Array], kind: str) -> float:
    """``layers``: matrices ``(out, in)`` of one branch."""
    norms = [float(np.sqrt(sum(entry**2 for entry in layer.flat))) for layer in layers]
    if kind == "product":
        return float(np.prod(norms))
    if kind == "power":
        return sum(norm ** len(layers) for norm in norms) / len(layers)
    return float(np.sqrt(np.sum(np.prod(path_weights(layers), axis=1) ** 2)))


def all_paths(layers: list[Array]) -> NDArray[np.intp]:
    """Every path, one a row: the number of its unit in the input, in each hidden layer and in the output."""
    return _paths_through((layers[0].shape[1], *(layer.shape[0] for layer in layers)))


@functools.cache
def _paths_through(widths: tuple[int, ...]) -> NDArray[np.intp]:
    return np.array(list(itertools.product(*map(range, widths))))


def path_weights(layers: list[Array]) -> Array:
    """Weights along every path, shape ``(num_paths, num_layers)``."""
    paths = all_paths(layers)
    return np.stack([layer[paths[:, i + 1], paths[:, i]] for i, layer in enumerate(layers)], axis=1)


def gradient_of_branch(layers: list[Array], kind: str) -> list[Array]:
    """Gradient of :func:`penalty_of_branch`; zero with respect to layers that are zero."""
    norms = [np.linalg.norm(layer) for layer in layers]
    gradients = []
    for index, layer in enumerate(layers):
        others = float(np.prod([norm for i, norm in enumerate(norms) if i != index]))
        if kind == "product":
            gradients.append(layer * (others / norms[index]) if norms[index] > 0 else 0 * layer)
        elif kind == "power":
            gradients.append(layer * norms[index] ** (len(layers) - 2) if norms[index] > 0 else 0 * layer)
        else:
            gradients.append(_l2_path_gradient(layers, index))
    return gradients


def _l2_path_gradient(layers: list[Array], index: int) -> Array:
    total = penalty_of_branch(layers, "l2_path")
    gradient = np.zeros_like(layers[index])
    if total == 0:
        return gradient
    paths, weights = all_paths(layers), path_weights(layers)
    others = np.prod(np.delete(weights, index, axis=1) ** 2, axis=1)
    np.add.at(gradient, (paths[:, index + 1], paths[:, index]), weights[:, index] * others / total)
    return gradient
