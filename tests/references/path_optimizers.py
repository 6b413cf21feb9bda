"""PathSGD and PathAdamW one branch at a time, as their docstrings define them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .path_penalties import gradient_of_branch

Array = NDArray[np.float64]


def _shrunk(moved: Array, threshold: float) -> Array:
    norm = np.linalg.norm(moved)
    return np.zeros_like(moved) if norm <= threshold else moved * (1 - threshold / norm)


def _rates(layers: list[Array], beta: float) -> list[float]:
    norms = [float(np.linalg.norm(layer)) for layer in layers]
    return [beta * float(np.prod(norms[:i] + norms[i + 1 :])) for i in range(len(layers))]


def _implicit_step(old: list[Array], moved: list[Array], thresholds: list[float]) -> tuple[list[Array], bool]:
    """Shorten all layers; a branch that a hidden layer makes zero gets a zero last layer instead."""
    shrunk = [_shrunk(block, threshold) for block, threshold in zip(moved, thresholds, strict=True)]
    collapsed = False
    for index, threshold in enumerate(thresholds[:-1]):
        if threshold > 0 and not shrunk[index].any():
            collapsed = True
            norm = np.linalg.norm(moved[index])
            if norm > 0:
                shrunk[index] = moved[index] * (np.linalg.norm(old[-1]) / norm)
    if collapsed:
        shrunk[-1] = np.zeros_like(shrunk[-1])
    return shrunk, collapsed


class SlowPathSGD:
    """One branch: ``layers`` are matrices ``(out, in)``, a first-layer bias being the last column of the first one."""

    def __init__(
        self,
        layers: list[Array],
        *,
        lr: float,
        path_decay: float,
        penalty: str = "product",
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        self.layers = [layer.copy() for layer in layers]
        self.lr, self.path_decay, self.penalty = lr, path_decay, penalty
        self.momentum, self.dampening, self.nesterov = momentum, dampening, nesterov
        self.buffers: list[Array] | None = None
        self.num_collapses = 0

    def step(self, grads: list[Array]) -> None:
        is_first, old_buffers = self.buffers is None, self.buffers
        is_implicit = self.penalty == "product"
        if not is_implicit:
            penalty_grads = gradient_of_branch(self.layers, self.penalty)
            grads = [grad + self.path_decay * added for grad, added in zip(grads, penalty_grads, strict=True)]
        share = 1.0 if is_first or self.momentum == 0 else 1 - self.dampening
        gain = 1 + self.momentum if self.nesterov else 1.0
        moved, self.buffers = [], []
        for index, (layer, grad) in enumerate(zip(self.layers, grads, strict=True)):
            old = 0.0 if old_buffers is None else old_buffers[index]
            buffer = self.momentum * old + share * grad
            direction = grad + self.momentum * buffer if self.nesterov else buffer
            moved.append(layer - self.lr * direction)
            self.buffers.append(buffer)
        if is_implicit:
            thresholds = [self.lr * share * gain * rate for rate in _rates(self.layers, self.path_decay)]
            for index, threshold in enumerate(thresholds):
                self.buffers[index] += (moved[index] - _shrunk(moved[index], threshold)) / (self.lr * gain)
            moved, collapsed = _implicit_step(self.layers, moved, thresholds)
            self.num_collapses += collapsed
        self.layers = moved


class SlowPathAdamW:
    """One branch, see :class:`SlowPathSGD`."""

    def __init__(
        self,
        layers: list[Array],
        *,
        lr: float,
        path_decay: float,
        penalty: str = "product",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.layers = [layer.copy() for layer in layers]
        self.lr, self.path_decay, self.penalty, self.betas, self.eps = lr, path_decay, penalty, betas, eps
        self.averages = [np.zeros_like(layer) for layer in layers]
        self.seconds = [0.0] * len(layers)
        self.counts = [0] * len(layers)
        self.num_collapses = 0

    def step(self, grads: list[Array]) -> None:
        is_implicit = self.penalty == "product"
        sizes = _rates(self.layers, self.path_decay)
        totals = grads
        if not is_implicit:
            penalty_grads = [self.path_decay * grad for grad in gradient_of_branch(self.layers, self.penalty)]
            sizes = [float(np.linalg.norm(grad)) for grad in penalty_grads]
            totals = [grad + added for grad, added in zip(grads, penalty_grads, strict=True)]
        beta1, beta2 = self.betas
        moved, thresholds = [], []
        for index, layer in enumerate(self.layers):
            mean_square = (np.sum(grads[index] ** 2) + sizes[index] ** 2) / layer.size
            if mean_square > 0:
                self.counts[index] += 1
                self.seconds[index] = beta2 * self.seconds[index] + (1 - beta2) * mean_square
            self.averages[index] = beta1 * self.averages[index] + (1 - beta1) * totals[index]
            if self.counts[index] == 0:  # nothing has ever happened in this block
                moved.append(layer)
                thresholds.append(0.0)
                continue
            step_size = self.lr / (np.sqrt(self.seconds[index] / (1 - beta2 ** self.counts[index])) + self.eps)
            moved.append(layer - step_size * self.averages[index] / (1 - beta1 ** self.counts[index]))
            thresholds.append(float(step_size * sizes[index]))
        if is_implicit:
            moved, collapsed = _implicit_step(self.layers, moved, thresholds)
            self.num_collapses += collapsed
            if collapsed:
                self.averages[-1], self.seconds[-1], self.counts[-1] = np.zeros_like(self.averages[-1]), 0.0, 0
        self.layers = moved
