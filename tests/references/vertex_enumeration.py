"""The two-layer dual norm in three dimensions from all vertices of the arrangement, any number of outputs. NumPy only."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def best_direction(
    rows: FloatArray,  # (n, 3), n >= 3, in general position
    duals: FloatArray,  # (n, c)
    *,
    slope: float = 0.0,
) -> tuple[float, FloatArray]:
    """Maximum of ``||sum_i duals_i s(rows_i'u)||`` over the unit ball, and where it is attained.

    On the sphere the planes ``rows_i'u = 0`` cut out cells with edges and vertices, and on each the map is linear. A maximum
    is a vertex, or the top singular direction of the map of a cell, in the whole space or in the plane of an edge. Every
    cell and every edge touches a vertex where two planes cross, so it is enough to look around all of these.
    Every value is attained by its direction, so the result is never too large, in general position or not.
    """
    pairs = np.array(list(itertools.combinations(range(len(rows)), 2)))
    vertices = np.cross(rows[pairs[:, 0]], rows[pairs[:, 1]])
    lengths = np.linalg.norm(vertices, axis=1)
    pairs, vertices = pairs[lengths > 0], vertices[lengths > 0] / lengths[lengths > 0, None]
    best, direction = 0.0, np.array([1.0, 0.0, 0.0])
    for start in range(0, len(pairs), 500):
        for sign in (1.0, -1.0):
            candidates = _around(rows, duals, slope, pairs[start : start + 500], sign * vertices[start : start + 500])
            values = _values(rows, duals, slope, candidates)
            index = int(values.argmax())
            if values[index] > best:
                best, direction = float(values[index]), candidates[index]
    return best, direction


def _values(rows: FloatArray, duals: FloatArray, slope: float, points: FloatArray) -> FloatArray:
    hidden = points @ rows.T
    values: FloatArray = np.linalg.norm(np.where(hidden > 0, hidden, slope * hidden) @ duals, axis=1)
    return values


def _around(rows: FloatArray, duals: FloatArray, slope: float, pairs: FloatArray, vertices: FloatArray) -> FloatArray:
    """The vertices, and the critical directions of the four cells and of the edges at each."""
    hidden = vertices @ rows.T
    number = np.arange(len(pairs))
    found = [vertices]
    for first, second in itertools.product((1.0, -1.0), repeat=2):
        hidden[number, pairs[:, 0]], hidden[number, pairs[:, 1]] = first, second
        gates = np.where(hidden > 0, 1.0, slope)
        maps = np.einsum("ni,kn,nc->kic", rows, gates, duals)  # (k, 3, c)
        found.append(_top(maps))
        for column in (0, 1):
            normal = rows[pairs[:, column]]
            normal = normal / np.linalg.norm(normal, axis=1, keepdims=True)
            found.append(_top(maps - np.einsum("ki,kj,kjc->kic", normal, normal, maps)))
    directions = np.concatenate([*found, *(-f for f in found[1:])])
    lengths = np.linalg.norm(directions, axis=1)
    kept: FloatArray = directions[lengths > 0.5]
    return kept


def _top(maps: FloatArray) -> FloatArray:
    left: FloatArray = np.linalg.svd(maps)[0][:, :, 0]
    return left
