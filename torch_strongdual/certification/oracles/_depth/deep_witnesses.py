"""Explicit deep branches: lower bounds on the dual norm, valued on the data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.dual_norm_bound import Witness
from torch_strongdual.certification.oracles.branch_ascent import ascend_branches
from torch_strongdual.certification.oracles.local_ascent import local_maxima
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem
from torch_strongdual.functional.branch_features import branch_features
from torch_strongdual.nn.branch_spec import BranchSpec

__all__ = [
    "best_value",
    "chain_branches",
    "improved_branches",
    "mixed_branch",
    "unit_images",
    "valued_witnesses",
]

FloatArray = NDArray[np.float64]
Branch = tuple[Tensor, ...]  # hidden weights, L - 1 of shape (out, in)

_NUMBERS_AT_A_TIME = 4_000_000


def chain_branches(
    spec: BranchSpec,
    rows: FloatArray,  # shape: (n, r)
    basis: FloatArray,  # shape: (in_features, r)
    duals: FloatArray,  # shape: (n, c)
    starts: FloatArray,  # shape: (m, r)
    *,
    num_kept: int = 4,
) -> tuple[list[Branch], FloatArray]:
    """Branches with one unit a layer: a direction, then weights +1 or -1. Also returns the directions.

    For given signs the features are ``p (Xu)_+ + q (-Xu)_+``, so that the best direction is a sphere problem again.
    """
    branches: list[Branch] = []
    directions: list[FloatArray] = []
    seen: set[tuple[float, float]] = set()
    for signs in itertools.product((1.0, -1.0), repeat=min(len(spec.activations) - 1, 6)):
        padded = signs + (1.0,) * (len(spec.activations) - 1 - len(signs))
        above, below = _chain(1.0, padded, spec.negative_slopes), _chain(-1.0, padded, spec.negative_slopes)
        if (above, below) in seen or (above == 0.0 and below == 0.0):
            continue
        seen.add((above, below))
        problem = SphereProblem(rows=rows, duals=(above + below) * duals, linear=-below * (rows.T @ duals))
        points = local_maxima(problem, starts if len(starts) else None, num_kept=num_kept)
        for point in points:
            directions.append(point)
            branches.append(_hidden_weights(spec, (basis @ point)[None], np.ones(1), padded))
    return branches, np.array(directions) if directions else np.zeros((0, rows.shape[1]))


def mixed_branch(spec: BranchSpec, units: FloatArray, weights: FloatArray) -> Branch | None:
    """A branch whose second hidden unit combines several first ones: ``sum_j weights_j s(X units_j)``.

    ``None`` unless the first two activations both bend (a linear layer in between would cost norm). At most as many units
    are used as the first hidden layer has.
    """
    if len(spec.activations) < 2 or spec.activations[0].is_identity or spec.activations[1].is_identity or not len(units):
        return None
    kept = np.argsort(-np.abs(weights), kind="stable")[: spec.hidden_widths[0]]
    return _hidden_weights(spec, units[kept], weights[kept], (1.0,) * (len(spec.activations) - 1))


def _chain(value: float, signs: Sequence[float], slopes: Sequence[float]) -> float:
    """What becomes of ``value`` behind all activations."""
    for sign, slope in zip((1.0, *signs), slopes, strict=True):
        value *= sign
        value = value if value >= 0 else slope * value
    return value


def _hidden_weights(spec: BranchSpec, units: FloatArray, weights: FloatArray, signs: Sequence[float]) -> Branch:
    """Weights of the spec's widths; ``units`` (k, in_features) feed one unit through ``weights``, then a chain of ``signs``."""
    fans = zip((spec.in_features, *spec.hidden_widths[:-1]), spec.hidden_widths, strict=True)
    layers = [torch.zeros(fan_out, fan_in, dtype=torch.float64) for fan_in, fan_out in fans]
    share = np.sqrt(np.abs(weights))
    layers[0][: len(units)] = torch.from_numpy(share[:, None] * units)
    layers[1][0, : len(units)] = signs[0] * torch.from_numpy(np.sign(weights) * share)
    for layer, sign in zip(layers[2:], signs[1:], strict=True):
        layer[0, 0] = sign
    return tuple(layers)


def improved_branches(
    spec: BranchSpec,
    matrix: FloatArray,  # shape: (n, in_features)
    duals: FloatArray,  # shape: (n, c)
    witnesses: Sequence[Witness],
    deadline: Deadline,
    *,
    num_copies: int = 4,
) -> list[Branch]:
    """Gradient ascent over all weights, from the best witnesses and shaken copies of them."""
    room = _NUMBERS_AT_A_TIME // max(1, len(matrix) * max(spec.hidden_widths) * num_copies)
    chosen = witnesses[: min(8, room)]
    if not chosen:
        return []
    generator = torch.Generator().manual_seed(0)
    starts = []
    for layer in range(len(spec.hidden_widths)):
        exact = torch.stack([witness.weights[layer] for witness in chosen])
        noise = torch.randn(num_copies - 1, *exact.shape, generator=generator, dtype=torch.float64)
        size = 0.3 / (exact.shape[1] * exact.shape[2]) ** 0.5
        starts.append(torch.cat([exact[None], exact + size * noise]).flatten(0, 1))
    found = ascend_branches(torch.from_numpy(matrix), torch.from_numpy(duals), starts, spec.negative_slopes, deadline=deadline)
    return [tuple(layer[k] for layer in found) for k in range(len(starts[0]))]


def valued_witnesses(
    spec: BranchSpec,
    matrix: FloatArray,  # shape: (n, in_features)
    duals: FloatArray,  # shape: (n, c)
    branches: Iterable[Branch],
    *,
    unit: float = 1.0,
    num_kept: int = 16,
) -> tuple[Witness, ...]:
    """Scale layers to norm one, add the best last layer, value on the data times ``unit``; one each for the same outputs."""
    inputs, dual_point = torch.from_numpy(matrix), torch.from_numpy(duals)
    found: list[tuple[Witness, Tensor]] = []
    for branch in branches:
        norms = [float(layer.norm()) for layer in branch]
        if not all(math.isfinite(norm) and norm > 0 for norm in norms):
            continue
        hidden = [layer / norm for layer, norm in zip(branch, norms, strict=True)]
        features = branch_features(inputs, [layer[None] for layer in hidden], spec.negative_slopes)[0]
        image = dual_point.T @ features  # (c, h)
        value = float(image.norm())
        if value > 0 and math.isfinite(value * unit):
            witness = Witness(weights=(*hidden, image / value), value=value * unit)
            outputs = features @ image.T
            found.append((witness, outputs / outputs.norm()))
    found.sort(key=lambda pair: -pair[0].value)
    kept: list[tuple[Witness, Tensor]] = []
    for witness, outputs in found:
        if len(kept) < num_kept and all(float((outputs * other).sum()) < 0.9999 for _, other in kept):
            kept.append((witness, outputs))
    return tuple(witness for witness, _ in kept)


def best_value(spec: BranchSpec, matrix: FloatArray, duals: FloatArray, branches: list[Branch]) -> float:
    """Largest value of ``branches``; 0 without any."""
    witnesses = valued_witnesses(spec, matrix, duals, branches)
    return witnesses[0].value if witnesses else 0.0


def unit_images(spec: BranchSpec, matrix: FloatArray, duals: FloatArray, branches: list[Branch]) -> FloatArray:  # shape: (m, c)
    """What ``branches`` give for ``duals``: of each the hidden unit with the largest image."""
    witnesses = valued_witnesses(spec, matrix, duals, branches)
    images = [witness.value * witness.weights[-1].numpy() for witness in witnesses]
    return np.array([image[:, np.linalg.norm(image, axis=0).argmax()] for image in images]).reshape(-1, duals.shape[1])
