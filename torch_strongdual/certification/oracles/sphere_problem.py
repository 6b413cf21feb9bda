"""The finite-dimensional problem behind every two-layer dual norm: a piecewise linear map maximised over the unit ball."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["SphereBound", "SphereProblem", "distinct_points"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SphereProblem:
    r"""Maximise :math:`\|w(u)\|_2` over :math:`\|u\|_2 \le 1`, where :math:`w(u) = G'u + \Lambda' (X u)_+`.

    ReLU has ``G = 0``; a leaky ReLU of slope ``a`` and duals ``M`` has ``G = a X'M``, ``Lambda = (1 - a) M``; the depth
    recursion makes problems with other ``G``. With ``one_sided`` (one output only) the maximum of :math:`w(u)` itself is meant,
    not of its absolute value; it is never negative since ``u = 0`` is allowed.

    Args:
        rows: :math:`X` (n, r), in coordinates of its row space.
        duals: :math:`\Lambda` (n, c), any signs.
        linear: :math:`G` (r, c).
        one_sided: Whether the sign of ``w`` counts; needs c = 1.
    """

    rows: FloatArray
    duals: FloatArray
    linear: FloatArray
    one_sided: bool = False
    _digest: list[bytes] = field(default_factory=list, init=False, repr=False)  # of the numbers, once it was asked for

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are."""
        return all(bool(np.isfinite(array).all()) for array in (self.rows, self.duals, self.linear))

    @property
    def num_rows(self) -> int:
        """Number n of rows."""
        return int(self.rows.shape[0])

    @property
    def rank(self) -> int:
        """Dimension r of the ball."""
        return int(self.rows.shape[1])

    @property
    def num_outputs(self) -> int:
        """Number c of outputs."""
        return int(self.duals.shape[1])

    def half(self, sign: float) -> SphereProblem:
        """The one-sided problem of ``sign * w`` (one output)."""
        return SphereProblem(rows=self.rows, duals=sign * self.duals, linear=sign * self.linear, one_sided=True)

    def along(self, direction: FloatArray) -> SphereProblem:  # (c,)
        """The one-sided problem of ``direction' w(u)``."""
        column = (self.duals @ direction)[:, None], (self.linear @ direction)[:, None]
        return SphereProblem(rows=self.rows, duals=column[0], linear=column[1], one_sided=True)

    def images(self, points: FloatArray) -> FloatArray:  # (m, r) -> (m, c)
        """``w`` at each of the ``points``."""
        values: FloatArray = points @ self.linear + np.maximum(points @ self.rows.T, 0.0) @ self.duals
        return values

    def values(self, points: FloatArray) -> FloatArray:  # (m, r) -> (m,)
        """``||w||``, or ``w`` itself if one-sided, at each of the ``points``."""
        images = self.images(points)
        result: FloatArray = images[:, 0] if self.one_sided else np.linalg.norm(images, axis=1)
        return result

    def magnitude(self) -> float:
        """``sum_i |Lambda_i| |x_i| + |G|``: no value on the ball exceeds it, and rounding is measured in it."""
        row_norms = np.linalg.norm(self.rows, axis=1)
        return float(np.linalg.norm(self.duals, axis=1) @ row_norms + np.linalg.norm(self.linear))

    def fingerprint(self) -> bytes:
        """The same for problems of the same numbers, and in practice for no others."""
        if not self._digest:
            digest = hashlib.blake2b(repr((self.rows.shape, self.duals.shape, self.one_sided)).encode())
            for array in (self.rows, self.duals, self.linear):
                digest.update(np.ascontiguousarray(array).tobytes())
            self._digest.append(digest.digest())
        return self._digest[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SphereBound:
    """``lower <= maximum <= upper`` of a :class:`SphereProblem`.

    Args:
        upper: Proven in floating point for exactly the given arrays; ``inf`` when nothing is proven.
        lower: Attained at ``points[0]`` up to rounding; 0 if there are none.
        points: Unit vectors, best first, shape (m, r), m may be 0.
        stats: What ran and what limited it.
        is_exhausted: Whether the request was not met, and more time would not help.
    """

    upper: float
    lower: float
    points: FloatArray
    stats: Mapping[str, float | str] = field(default_factory=dict)
    is_exhausted: bool = False

    @classmethod
    def nothing(cls, problem: SphereProblem, limited_by: str) -> SphereBound:
        """Nothing proven, nothing attained, and why."""
        return cls(upper=math.inf, lower=0.0, points=np.zeros((0, problem.rank)), stats={"limited_by": limited_by})


def distinct_points(points: FloatArray, values: FloatArray, number: int) -> FloatArray:  # (m, r), (m,)
    """The best ``number`` unit vectors with positive value, best first, no two closer than about two degrees.

    Example:
        >>> distinct_points(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1e-9]]), np.array([1.0, 2.0, 0.5]), 3)
        array([[0., 1.],
               [1., 0.]])
    """
    kept: list[FloatArray] = []
    for index in np.argsort(-values, kind="stable"):
        if len(kept) == number or not values[index] > 0:
            break
        if all(float(points[index] @ other) < 0.9995 for other in kept):
            kept.append(points[index])
    return np.array(kept).reshape(len(kept), points.shape[1])
