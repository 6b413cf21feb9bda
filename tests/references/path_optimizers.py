"""PathSGD and PathAdamW one branch at a time, as their docstrings define them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .path_penalties import gradient_of_branch

Array = NDArray[np.float64]


def _shrunk(block: Array, threshold: float) -> Array:
    norm = np.linalg.norm(block)
    return np.zeros_like(block) if norm <= threshold else block * (1 - threshold / norm)


def _rate(layers: list[Array], beta: float) -> float:
    return beta * float(np.prod([np.linalg.norm(layer) for layer in layers[:-1]]))


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

    def step(self, grads: list[Array]) -> None:
        penalty_grads = gradient_of_branch(self.layers, self.penalty)
        rate = _rate(self.layers, self.path_decay)
        old = self.buffers
        self.buffers = []
        for index, layer in enumerate(self.layers):
            is_implicit = self.penalty == "product" and index == len(self.layers) - 1
            grad = grads[index] if is_implicit else grads[index] + self.path_decay * penalty_grads[index]
            weight_of_new = 1.0 if old is None or self.momentum == 0 else 1 - self.dampening
            buffer = grad if old is None or self.momentum == 0 else self.momentum * old[index] + weight_of_new * grad
            direction = grad + self.momentum * buffer if self.nesterov else buffer
            moved = layer - self.lr * direction
            if is_implicit:
                gain = weight_of_new * (1 + self.momentum if self.nesterov else 1)
                result = _shrunk(moved, self.lr * gain * rate)
                buffer = buffer + weight_of_new * (moved - result) / (self.lr * gain)
                moved = result
            self.buffers.append(buffer)
            self.layers[index] = moved


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

    def step(self, grads: list[Array]) -> None:
        penalty_grads = [self.path_decay * grad for grad in gradient_of_branch(self.layers, self.penalty)]
        rate = _rate(self.layers, self.path_decay)
        beta1, beta2 = self.betas
        for index, grad in enumerate(grads):
            is_implicit = self.penalty == "product" and index == len(self.layers) - 1
            size = rate if is_implicit else float(np.linalg.norm(penalty_grads[index]))
            mean_square = (np.sum(grad**2) + size**2) / grad.size
            if mean_square > 0:
                self.counts[index] += 1
                self.seconds[index] = beta2 * self.seconds[index] + (1 - beta2) * mean_square
            total = grad if is_implicit else grad + penalty_grads[index]
            self.averages[index] = beta1 * self.averages[index] + (1 - beta1) * total
            if self.counts[index] == 0:
                continue  # nothing has ever happened in this block
            step_size = self.lr / (np.sqrt(self.seconds[index] / (1 - beta2 ** self.counts[index])) + self.eps)
            moved = self.layers[index] - step_size * self.averages[index] / (1 - beta1 ** self.counts[index])
            self.layers[index] = _shrunk(moved, step_size * size) if is_implicit else moved
