"""A lower estimate of the dual norm of deep branches with one output: gradient ascent from many starts at once. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def sampled_deep_dual_norm(
    inputs: FloatArray,  # (n, d)
    duals: FloatArray,  # (n,)
    *,
    hidden_widths: Sequence[int],  # the last one is 1
    slopes: Sequence[float],
    num_starts: int = 64,
    num_steps: int = 200,
    seed: int = 0,
) -> float:
    """Never above the dual norm, by construction: the best ``|duals'phi|`` over the unit-norm branches that were visited.

    Steps along the normalised gradient shrink from 0.5 to 1e-4; every layer is scaled back to Frobenius norm one.
    """
    generator = np.random.default_rng(seed)
    widths = [inputs.shape[1], *hidden_widths]
    layers = [generator.standard_normal((num_starts, out, fan_in)) for fan_in, out in pairwise(widths)]
    for index, layer in enumerate(layers):  # every third start has one live unit a layer
        layer[::3, 1:] = 0.0
        if index:
            layer[::3, :, 1:] = 0.0
    signs = np.where(np.arange(num_starts) % 2 == 0, 1.0, -1.0)
    layers = [_scaled(layer) for layer in layers]
    best = 0.0
    for length in np.geomspace(0.5, 1e-4, num_steps):
        values, gradients = _values_and_gradients(inputs, duals, layers, slopes)
        best = max(best, float(np.max(np.abs(values))))
        layers = [
            _scaled(layer + length * signs[:, None, None] * _scaled(g)) for layer, g in zip(layers, gradients, strict=True)
        ]
    values, _ = _values_and_gradients(inputs, duals, layers, slopes)
    return max(best, float(np.max(np.abs(values))))


def _scaled(layer: FloatArray) -> FloatArray:
    """Every matrix of a stack divided by its Frobenius norm; zero stays zero."""
    norms = np.sqrt(np.sum(layer**2, axis=(1, 2), keepdims=True))
    scaled: FloatArray = np.divide(layer, norms, out=np.zeros_like(layer), where=norms > 0)
    return scaled


def _values_and_gradients(
    inputs: FloatArray, duals: FloatArray, layers: Sequence[FloatArray], slopes: Sequence[float]
) -> tuple[FloatArray, list[FloatArray]]:
    """``duals'phi`` of every branch and its derivatives with respect to the layers."""
    hidden = [np.broadcast_to(inputs, (len(layers[0]), *inputs.shape))]
    masks = []
    for layer, slope in zip(layers, slopes, strict=True):
        before = hidden[-1] @ layer.transpose(0, 2, 1)
        masks.append(np.where(before > 0, 1.0, slope))
        hidden.append(before * masks[-1])
    values = hidden[-1][:, :, 0] @ duals
    back = np.broadcast_to(duals[None, :, None], hidden[-1].shape)
    gradients = []
    for layer, before, mask in zip(reversed(layers), reversed(hidden[:-1]), reversed(masks), strict=True):
        back = back * mask
        gradients.append(back.transpose(0, 2, 1) @ before)
        back = back @ layer
    return values, gradients[::-1]
