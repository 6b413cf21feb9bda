"""Every sign pattern of ``rows @ u``, and the two-layer dual norm from all of them. NumPy and SciPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

FloatArray = NDArray[np.float64]


def interior_point(normals: FloatArray) -> FloatArray | None:  # (m, r) -> (r,)
    """Return u with ``normals @ u > 0`` in every entry, or ``None`` if there is none.

    Least squares of (0, ..., 0, 1) by non-negative combinations of the columns (normal, 1): with residual (-p, q), its
    optimality says ``normals @ p >= q = |residual|^2``, and the residual is zero exactly when no u exists (Gordan).
    """
    if not len(normals):
        return np.zeros(normals.shape[1])
    system = np.vstack([normals.T, np.ones(len(normals))])
    target = np.zeros(len(system))
    target[-1] = 1.0
    combination, _ = nnls(system, target)
    point = normals.T @ combination
    length = float(np.linalg.norm(point))
    if length < 1e-12 or float(np.min(normals @ point)) < 1e-13 * length:
        return None
    return np.asarray(point / length)


def enumerate_patterns(rows: FloatArray) -> FloatArray:  # (n, r) -> (number of patterns, n), entries -1, 0, 1
    """Signs of ``rows @ u`` on every full-dimensional cell; 0 stands for a zero row.

    Row after row, every cell so far is cut in two wherever both sides have an interior point. Complete for any rows:
    parallel, repeated, zero, rank deficient.
    """
    lengths = np.linalg.norm(rows, axis=1)
    patterns = [np.zeros(0)]
    for index, length in enumerate(lengths):
        longer = []
        for pattern in patterns:
            if length == 0.0:
                longer.append(np.append(pattern, 0.0))
                continue
            for sign in (1.0, -1.0):
                extended = np.append(pattern, sign)
                used = extended != 0
                unit = rows[: index + 1][used] / lengths[: index + 1][used, None]
                if interior_point(unit * extended[used, None]) is not None:
                    longer.append(extended)
        patterns = longer
    return np.array(patterns).reshape(len(patterns), len(rows))


def norm_of_projection(vector: FloatArray, normals: FloatArray) -> float:
    """Maximum of ``vector @ u`` over unit-ball u with ``normals @ u >= 0``: the norm of the projection on that cone."""
    if not len(normals):
        return float(np.linalg.norm(vector))
    scale = float(np.linalg.norm(vector))
    if scale == 0.0:
        return 0.0
    _, distance = nnls(normals.T, -vector / scale)
    return float(distance) * scale


def exact_dual_norm(
    rows: FloatArray,  # (n, r)
    duals: FloatArray,  # (n,)
    linear: FloatArray | None = None,  # (r,)
    *,
    one_sided: bool = False,
    slope: float = 0.0,
    patterns: FloatArray | None = None,
) -> float:
    """Maximum of ``|linear'u + sum_i duals_i s(rows_i'u)|`` over the unit ball, ``s(t) = max(t, 0) + slope min(t, 0)``.

    One projection a pattern: on the closed cell the function is linear. With ``one_sided`` without the absolute value.
    """
    patterns = enumerate_patterns(rows) if patterns is None else patterns
    offset = np.zeros(rows.shape[1]) if linear is None else linear
    lengths = np.linalg.norm(rows, axis=1)
    best = 0.0
    for pattern in patterns:
        gates = np.where(pattern > 0, 1.0, slope)
        gradient = offset + (gates * duals) @ rows
        used = pattern != 0
        normals = rows[used] / lengths[used, None] * pattern[used, None]
        best = max(best, norm_of_projection(gradient, normals))
        if not one_sided:
            best = max(best, norm_of_projection(-gradient, normals))
    return best
