"""Steps of a path optimizer against those of its slow reference, branch by branch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._typed_torch import backward
from .branch_problems import random_bias, random_layers, relu_loss, stacked

__all__ = ["assert_equals_reference"]


def _grad(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def assert_equals_reference(
    optimizer_type: Callable[..., torch.optim.Optimizer],
    reference_type: Callable[..., Any],
    penalty: str,
    options: dict[str, Any],
) -> None:
    """A hundred steps on four branches with a bias, at a path decay that makes some of them exactly zero."""
    layers, bias = random_layers(), random_bias()
    with torch.no_grad():  # some branches then die through a hidden layer, which is a rule of its own
        layers[1][:2].mul_(0.1)
    # strong enough for exact zeros; the smooth forms only stay comparable where no branch comes close to their kink
    path_decay = 0.3 if penalty == "product" else 0.05
    every = {"lr": 0.02, "path_decay": path_decay, "penalty": penalty, **options}
    optimizer = optimizer_type([{"params": [layers[0], bias, *layers[1:]], "layer_index": (0, 0, 1, 2)}], **every)
    stacks = stacked(layers, bias)
    references = [reference_type([stack[k].numpy() for stack in stacks], **every) for k in range(4)]
    zeros_seen = 0
    for _ in range(100):
        optimizer.zero_grad()
        backward(relu_loss(layers, bias))
        grads = stacked([*map(_grad, layers)], _grad(bias))
        optimizer.step()
        for k, reference in enumerate(references):
            reference.step([grad[k].numpy() for grad in grads])
            zeros_seen += not reference.layers[-1].any()
        for found, *expected in zip(stacked(layers, bias), *(reference.layers for reference in references), strict=True):
            np.testing.assert_allclose(found.numpy(), np.stack(expected), rtol=1e-9, atol=1e-11)
    assert (zeros_seen > 0) == (penalty == "product")
    assert (sum(reference.num_collapses for reference in references) > 0) == (penalty == "product")
