"""The two-layer dual norm in the plane, for any number of outputs, arc by arc. NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def exact_planar_dual_norm(
    rows: FloatArray,  # (n, 2)
    duals: FloatArray,  # (n, c)
    linear: FloatArray | None = None,  # (2, c)
    *,
    one_sided: bool = False,
    slope: float = 0.0,
) -> float:
    """Maximum of ``||linear'u + sum_i duals_i s(rows_i'u)||`` over the unit disc; without the norm if ``one_sided`` (c = 1).

    The circle is cut where a row is orthogonal to u. Each arc's active rows are read off at its middle and summed afresh; the
    maximum of the matrix over the arc is at its top right singular direction if that lies in the arc, else at an end.
    """
    offset = np.zeros((2, duals.shape[1])) if linear is None else linear
    kept = np.linalg.norm(rows, axis=1) > 0
    rows, duals = rows[kept], duals[kept]
    if not len(rows):
        value = float(np.linalg.norm(offset, 2))
        return max(value, 0.0)
    angles = np.arctan2(rows[:, 1], rows[:, 0])
    cuts = np.unique(np.mod(np.concatenate([angles + np.pi / 2, angles - np.pi / 2]), 2 * np.pi))
    ends = np.append(cuts[1:], cuts[0] + 2 * np.pi)
    middle = _on_circle(0.5 * (cuts + ends))
    hidden = middle @ rows.T
    gates = np.where(hidden > 0, 1.0, slope)  # (arcs, n)
    maps = offset + np.einsum("nr,an,nc->arc", rows, gates, duals)  # (arcs, 2, c)
    first, last = _on_circle(cuts), _on_circle(ends)
    best = 0.0
    for matrix, start, mid, end in zip(maps, first, middle, last, strict=True):
        best = max(best, _value(matrix, start, one_sided), _value(matrix, end, one_sided))
        left, _, _ = np.linalg.svd(matrix)
        for direction in (left[:, 0], -left[:, 0]):
            # inside the arc (of at most half a turn): on the inner side of both ends
            inner = _cross(start, direction) >= 0 and _cross(direction, end) >= 0 and float(direction @ mid) >= 0
            if inner:
                best = max(best, _value(matrix, direction, one_sided))
    return best


def _on_circle(angles: FloatArray) -> FloatArray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def _cross(first: FloatArray, second: FloatArray) -> float:
    return float(first[0] * second[1] - first[1] * second[0])


def _value(matrix: FloatArray, point: FloatArray, one_sided: bool) -> float:
    image = matrix.T @ point
    return float(image[0]) if one_sided else float(np.linalg.norm(image))
