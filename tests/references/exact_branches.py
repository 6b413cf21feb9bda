"""Outputs of a sum of piecewise linear branches in exact rational arithmetic: slow, obvious, no rounding."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Matrix = list[list[Fraction]]


def exact_outputs(
    inputs: NDArray[np.float64],  # (n, d), a column of ones included where the weights have one
    weights: Sequence[NDArray[np.float64]],  # L of shape (K, out, in)
    biases: Sequence[NDArray[np.float64] | None],  # L - 1 of shape (K, out) or None
    slopes: Sequence[float],
    gates: Sequence[NDArray[np.bool_] | None],  # L - 1 of shape (K, n) or None
    output_bias: NDArray[np.float64] | None,
) -> Matrix:
    """Outputs (n, c) as fractions."""
    num_outputs = weights[-1].shape[1]
    return [
        [
            sum((_branch(row, i, k, weights, biases, slopes, gates)[o] for k in range(weights[0].shape[0])), Fraction(0))
            + (Fraction(0) if output_bias is None else Fraction(float(output_bias[o])))
            for o in range(num_outputs)
        ]
        for i, row in enumerate(inputs)
    ]


def _branch(
    row: NDArray[np.float64],
    sample: int,
    k: int,
    weights: Sequence[NDArray[np.float64]],
    biases: Sequence[NDArray[np.float64] | None],
    slopes: Sequence[float],
    gates: Sequence[NDArray[np.bool_] | None],
) -> list[Fraction]:
    hidden = [Fraction(float(value)) for value in row]
    for layer, weight in enumerate(weights):
        hidden = [sum((Fraction(float(w)) * h for w, h in zip(unit, hidden, strict=True)), Fraction(0)) for unit in weight[k]]
        if layer == len(weights) - 1:
            break
        bias, gate = biases[layer], gates[layer]
        if bias is not None:
            hidden = [h + Fraction(float(b)) for h, b in zip(hidden, bias[k], strict=True)]
        hidden = [h if h >= 0 else Fraction(slopes[layer]) * h for h in hidden]
        if gate is not None and not gate[k, sample]:
            hidden = [Fraction(0)] * len(hidden)
    return hidden
