r"""The norm of several outputs from bounds along single directions: a cover of the directions by simplicial cones.

``kappa(v) = max |v'w|`` over the images w of unit branches is even and sublinear in v. A direction in the cone of
``v_1, ..., v_c`` is ``v = sum a_k v_k``, ``a >= 0``, so that ``kappa(v) <= sum a_k kappa(v_k) <= v'z <= |v| |z|`` for every z
with ``v_k'z >= kappa(v_k)``. The largest of the shortest such z over cones that cover half the directions bounds ``max |w|``.
With the axes alone it is the root of the sum of squares; where it is largest, an edge is cut by a new direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles._verified_psd import gamma

__all__ = ["DirectionBound", "OutputsBound", "bound_over_directions"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_MOST_OUTPUTS = 11  # 2^10 cones
_LONG_ENOUGH = 0.7  # edges next to the longest one may be cut, too
_INFLATIONS = (1e-12, 1e-9, 1e-6)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DirectionBound:
    """What is known along one direction.

    Args:
        upper: Proven bound on ``max |v'w|``.
        images: Images w of unit branches that were met, shape (m, c).
    """

    upper: float
    images: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OutputsBound:
    """Bound on the norm of all outputs.

    Args:
        upper: Proven; ``inf`` where a direction has no bound.
        num_directions: How many directions were bounded.
    """

    upper: float
    num_directions: int


def bound_over_directions(
    bound_along: Callable[[FloatArray, Deadline], DirectionBound],
    num_outputs: int,
    *,
    images: FloatArray,  # shape: (m, num_outputs)
    enough: float,
    rtol: float,
    deadline: Deadline,
    max_directions: int = 64,
) -> OutputsBound:
    r"""Bound :math:`\max \|w\|` by bounds along directions: the axes first, then wherever the cover is worst.

    Args:
        bound_along: Bounds one direction within the deadline given: ``max |v'w|`` for exactly this v, a vector of norm 1 to 2.
        num_outputs: Dimension c of the images.
        images: Images of unit branches known beforehand; they only steer the search.
        enough: Stop when the bound is at most this.
        rtol: Stop when the bound is within this of the largest image.
        deadline: Stop when it expires, but not before the axes.
        max_directions: Stop after that many.

    Example:
        >>> largest = lambda v, _: DirectionBound(upper=float(np.abs(v).max()), images=np.eye(2))  # images: the unit vectors
        >>> found = bound_over_directions(largest, 2, images=np.eye(2), enough=0.0, rtol=0.02, deadline=Deadline())
        >>> 1.0 <= found.upper <= 1.02
        True
    """
    cover = _Cover.of(num_outputs)
    for number, axis in enumerate(np.eye(num_outputs)):
        left = num_outputs - number + (4 if num_outputs > 1 else 0)
        found = bound_along(axis, deadline.fraction(1.0 / left) if left > 1 else deadline)
        images = np.concatenate([images, found.images])
        cover.directions.append(axis)
        cover.bounds.append(found.upper)
    if not all(map(math.isfinite, cover.bounds)):
        return OutputsBound(upper=math.inf, num_directions=num_outputs)
    along_axes = math.sqrt(sum(bound * bound for bound in cover.bounds)) * (1.0 + gamma(num_outputs + 8))
    cover.value(np.arange(len(cover.indices)))
    upper = along_axes
    while True:
        upper = min(upper, float(cover.values.max()))
        lower = float(np.max(np.linalg.norm(images, axis=1), initial=0.0))
        if upper <= max(enough, (1.0 + rtol) * lower) or deadline.expired or len(cover.bounds) >= max_directions:
            break
        if not 1 < num_outputs <= _MOST_OUTPUTS:
            break
        edge = cover.edge_to_cut(images)
        direction = cover.middle(edge)
        if direction is None:
            break
        found = bound_along(direction, deadline.fraction(0.25))
        images = np.concatenate([images, found.images])
        if not math.isfinite(found.upper):
            break
        cover.cut(edge, direction, min(found.upper, cover.implied(edge, direction)))
    return OutputsBound(upper=upper, num_directions=len(cover.bounds))


@dataclass(frozen=True, slots=True)
class _Edge:
    """Two directions, by number, and the sign of the second relative to the first."""

    first: int
    second: int
    sign: float


class _Cover:
    """Cones that cover all directions up to sign: numbers and signs of their generators."""

    def __init__(self, indices: IntArray, signs: FloatArray) -> None:
        self.directions: list[FloatArray] = []  # axes, then dyadic combinations: exact
        self.bounds: list[float] = []
        self.indices, self.signs = indices, signs  # (m, c)
        self.values: FloatArray = np.full(len(indices), math.inf)

    @classmethod
    def of(cls, num_outputs: int) -> _Cover:
        """Half of the orthants (none but the axes for very many outputs)."""
        num = num_outputs if num_outputs <= _MOST_OUTPUTS else 1
        patterns = np.arange(2 ** (num - 1))[:, None] >> np.arange(num - 1)[None, :] & 1
        signs = np.concatenate(
            [np.ones((len(patterns), 1)), 1.0 - 2.0 * patterns, np.ones((len(patterns), num_outputs - num))], 1
        )
        return cls(np.tile(np.arange(num_outputs), (len(signs), 1)), signs)

    def value(self, cones: IntArray) -> None:
        """Evaluate the bounds of these cones."""
        generators, heights = self._stack(self.indices[cones], self.signs[cones])
        self.values[cones] = _shortest_lengths(generators, heights)

    def _stack(self, indices: IntArray, signs: FloatArray) -> tuple[FloatArray, FloatArray]:
        directions, bounds = np.array(self.directions), np.array(self.bounds)
        return signs[:, :, None] * directions[indices], bounds[indices]

    def edge_to_cut(self, images: FloatArray) -> _Edge:
        """Of the worst cone the edge whose halves look best, if the new direction's bound is what the images attain."""
        worst = int(self.values.argmax())
        indices, signs = self.indices[worst], self.signs[worst]
        generators, heights = self._stack(indices[None], signs[None])
        units = generators[0] / np.linalg.norm(generators[0], axis=1)[:, None]
        angles = np.arccos(np.clip(units @ units.T, -1.0, 1.0))
        rows, columns = np.triu_indices(len(indices), 1)
        long = angles[rows, columns] >= _LONG_ENOUGH * angles[rows, columns].max()
        pairs = list(zip(rows[long].tolist(), columns[long].tolist(), strict=True))
        halves, levels = [], []
        for i, j in pairs:
            middle = units[i] + units[j]
            middle /= np.linalg.norm(middle)
            for replaced in (i, j):
                half, level = generators[0].copy(), heights[0].copy()
                half[replaced], level[replaced] = middle, float(np.max(np.abs(images @ middle), initial=0.0))
                halves.append(half)
                levels.append(level)
        promised = _shortest_lengths(np.array(halves), np.array(levels)).reshape(-1, 2).max(axis=1)
        i, j = pairs[int(promised.argmin())]
        return _Edge(int(indices[i]), int(indices[j]), float(signs[i] * signs[j]))

    def middle(self, edge: _Edge) -> FloatArray | None:
        """A direction about half way along ``edge``, exactly in its plane; ``None`` if that takes too many digits."""
        ends = [self.directions[edge.first], edge.sign * self.directions[edge.second]]
        lengths = [float(np.linalg.norm(end)) for end in ends]
        for index in (0, 1):  # all directions have lengths in [1, 2)
            if lengths[1 - index] > math.sqrt(2.0) * lengths[index]:
                ends[index] = 2.0 * ends[index]
        middle = ends[0] + ends[1]
        if (middle - ends[0] != ends[1]).any() or (middle - ends[1] != ends[0]).any():
            return None
        scaled: FloatArray = middle / math.ldexp(1.0, math.frexp(float(np.linalg.norm(middle)))[1] - 1)
        return scaled

    def implied(self, edge: _Edge, direction: FloatArray) -> float:
        """What the bounds at the ends of ``edge`` say of :meth:`middle`: ``kappa`` is sublinear."""
        ends = np.stack([self.directions[edge.first], edge.sign * self.directions[edge.second]], axis=1)
        shares = np.linalg.lstsq(ends, direction, rcond=None)[0]
        bounds = np.array([self.bounds[edge.first], self.bounds[edge.second]])
        exact = 2.0 ** np.round(np.log2(np.maximum(shares, 1e-300)))  # powers of two: no rounding in what follows
        if (ends @ exact != direction).any():
            return math.inf
        return float(exact @ bounds) * (1.0 + gamma(4))

    def cut(self, edge: _Edge, direction: FloatArray, bound: float) -> None:
        """Replace every cone with this edge, or its negative, by its two halves."""
        number = len(self.bounds)
        self.directions.append(direction)
        self.bounds.append(bound)
        first, second = self.indices == edge.first, self.indices == edge.second
        relative = (self.signs * first).sum(axis=1) * (self.signs * second).sum(axis=1)
        chosen = np.flatnonzero(first.any(axis=1) & second.any(axis=1) & (relative == edge.sign))
        sign = (self.signs * first).sum(axis=1)[chosen]
        indices, signs = [], []
        for replaced in (first, second):
            half, half_signs = self.indices[chosen].copy(), self.signs[chosen].copy()
            half[replaced[chosen]], half_signs[replaced[chosen]] = number, sign
            indices.append(half)
            signs.append(half_signs)
        kept = np.delete(np.arange(len(self.indices)), chosen)
        self.indices = np.concatenate([self.indices[kept], *indices])
        self.signs = np.concatenate([self.signs[kept], *signs])
        self.values = np.concatenate([self.values[kept], np.full(2 * len(chosen), math.inf)])
        self.value(np.arange(len(kept), len(self.indices)))


def _shortest_lengths(generators: FloatArray, heights: FloatArray) -> FloatArray:  # (m, c, c), (m, c) -> (m,)
    r"""Upper bounds on ``max v'z / |v|`` over cones, ``v_k'z = heights_k``: ``|z|`` for a short z with ``v_k'z >= heights_k``.

    Whatever the solvers return, that inequality is checked with the rounding of its evaluation; ``inf`` where it fails.
    """
    lengths = np.full(len(heights), math.inf)
    num_outputs = heights.shape[1]
    for inflation in _INFLATIONS:
        raised = heights * (1.0 + inflation)
        try:
            normals = np.linalg.solve(generators, raised[:, :, None])[:, :, 0]
            shares = np.linalg.solve(generators.transpose(0, 2, 1), normals[:, :, None])[:, :, 0]
        except np.linalg.LinAlgError:
            continue
        for cone in np.flatnonzero((shares < 0).any(axis=1)):  # z lies outside: a shorter one will do
            normals[cone] = _shortest(generators[cone], raised[cone], normals[cone])
        products = np.einsum("mkc,mc->mk", generators, normals)
        rounding = gamma(num_outputs + 2) * np.einsum("mkc,mc->mk", np.abs(generators), np.abs(normals))
        valid = (products - 2.0 * rounding >= heights).all(axis=1)
        found = np.where(valid, np.linalg.norm(normals, axis=1) * (1.0 + gamma(num_outputs + 8)), math.inf)
        lengths = np.minimum(lengths, found)
        if np.isfinite(lengths).all():
            break
    return lengths


def _shortest(generators: FloatArray, heights: FloatArray, fallback: FloatArray) -> FloatArray:
    """The shortest z with ``v_k'z >= heights_k``, from nonnegative least squares (Lawson and Hanson's LDP)."""
    from scipy.optimize import nnls

    top = float(heights.max())
    if top <= 0.0:
        return fallback
    stacked = np.vstack([generators.T, heights[None] / top])
    try:
        shares, _ = nnls(stacked, np.append(np.zeros(len(heights)), 1.0))
    except RuntimeError:
        return fallback
    residual = stacked @ shares - np.append(np.zeros(len(heights)), 1.0)
    if not residual[-1] < -1e-12:
        return fallback
    shorter: FloatArray = -residual[:-1] / residual[-1] * top
    return shorter if float(np.linalg.norm(shorter)) < float(np.linalg.norm(fallback)) else fallback
