"""Augmented Lagrangian of the constraints on products, for moments that are a low-rank factor times its transpose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift
from torch_strongdual.certification.oracles._doubly_nonnegative.product_multipliers import ProductMultipliers

__all__ = ["FactorPenalty", "FactorValue"]

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.intp]

_BLOCK = 2**17  # products looked at together
_SMALLEST_CUT = 0.01  # a product violated by less than this share of the largest violation is not added


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FactorValue:
    """The penalty at a factor.

    Args:
        value: Of the penalty.
        products: Its gradient in the rows of p, shape (2 n, k).
        linear: Its gradient in those of u, through the cones alone, shape (r, k).
        size: Its gradient in the size.
        multipliers: What the multipliers are to become next.
    """

    value: float
    products: FloatArray
    linear: FloatArray
    size: float
    multipliers: ProductMultipliers


class FactorPenalty:
    r"""Penalty for moments :math:`Y = F F'`, F with rows :math:`t e_1` for 1, V for u, and p for (z, s).

    The rows of p are :math:`\tfrac12 (w_i \pm x_i'V)` where a sign is open, and what the sign says where it is decided: W is
    free, and what a lift expands to is kept without constraints. For a constraint :math:`c(Y) \ge 0` of multiplier m the
    penalty is :math:`((m - \sigma c)_+^2 - m^2) / (2 \sigma)`, for the cones the square of a projection likewise.

    Args:
        lift: Which signs are open.
        multipliers: m.
        weight: :math:`\sigma`.
        has_cones: Whether there are cones; without, their multipliers are zero, and 1 has no part in anything.

    References:
        Burer, Monteiro, "A nonlinear programming algorithm for solving semidefinite programs via low-rank factorization",
        Math. Prog. 95, 2003.
    """

    def __init__(self, lift: Lift, multipliers: ProductMultipliers, weight: float, *, has_cones: bool = True) -> None:
        from scipy.sparse import coo_array

        self._lift, self.multipliers, self.weight, self._has_cones = lift, multipliers, weight, has_cones
        signs = lift.signs[:, None]
        half = 0.5 * (signs == 0)
        self._of_opened = half
        self._of_rows = half + (signs > 0), half + (signs < 0)
        number, length = len(multipliers.first), 2 * lift.num_rows
        ends = np.concatenate([multipliers.first, multipliers.second]), np.concatenate([multipliers.second, multipliers.first])
        pattern = coo_array((np.tile(np.arange(number, dtype=np.float64), 2), ends), shape=(length, length)).tocsr()
        self._pattern, self._order = pattern, pattern.data.astype(np.intp)

    def factor(self, linear: FloatArray, opened: FloatArray) -> FloatArray:
        """Rows of p, shape (2 n, k), from V (r, k) and W (n, k)."""
        middle, tilt = self._of_opened * opened, self._lift.rows @ linear
        result = np.empty((2 * len(opened), opened.shape[1]))
        np.add(middle, self._of_rows[0] * tilt, out=result[: len(opened)])
        np.subtract(middle, self._of_rows[1] * tilt, out=result[len(opened) :])
        return result

    def pulled_back(self, products: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Gradients in V and W from one in the rows of p."""
        active, inactive = products[: self._lift.num_rows], products[self._lift.num_rows :]
        tilt = self._of_rows[0] * active - self._of_rows[1] * inactive
        return self._lift.rows.T @ tilt, self._of_opened * (active + inactive)

    def evaluate(self, size: float, linear: FloatArray, products: FloatArray) -> FactorValue:
        """The penalty and its gradient at t, V and the rows of p."""
        known, weight = self.multipliers, self.weight
        number = self._lift.num_rows
        active, inactive = products[:number], products[number:]
        overlaps = np.einsum("ij,ij->i", products[known.first], products[known.second])
        pressed = np.maximum(known.products - weight * overlaps, 0.0)
        self._pattern.data = pressed[self._order]
        gradient: FloatArray = self._pattern @ products
        crossed = known.crossed - weight * np.einsum("ij,ij->i", active, inactive)
        gradient[:number] += crossed[:, None] * inactive
        gradient[number:] += crossed[:, None] * active
        cones, of_base = known.cones, np.zeros((1 + len(linear), linear.shape[1]))
        if self._has_cones:
            base = np.zeros_like(of_base)
            base[0, 0], base[1:] = size, linear
            cones = _projected(known.cones - weight * (products @ base.T))
            gradient += cones @ base
            of_base = -(cones.T @ products)
        np.negative(gradient, out=gradient)
        value = float(pressed @ pressed + crossed @ crossed + np.vdot(cones, cones)) / (2.0 * weight)
        later = ProductMultipliers(first=known.first, second=known.second, products=pressed, crossed=crossed, cones=cones)
        return FactorValue(value=value, products=gradient, linear=of_base[1:], size=float(of_base[0, 0]), multipliers=later)

    def updated(self, value: FactorValue, products: FloatArray, *, weight: float, max_cuts: int) -> FactorPenalty:
        """The next penalty: new multipliers and weight, products without a multiplier left out, the most violated put in."""
        known = value.multipliers
        used = known.products > 0.0
        first, second, kept = known.first[used], known.second[used], known.products[used]
        added = _violated(products, first, second, max_cuts)
        multipliers = ProductMultipliers(
            first=np.concatenate([first, added[0]]),
            second=np.concatenate([second, added[1]]),
            products=np.concatenate([kept, np.zeros(len(added[0]))]),
            crossed=known.crossed,
            cones=known.cones,
        )
        return FactorPenalty(self._lift, multipliers, weight, has_cones=self._has_cones)


def _violated(products: FloatArray, first: IndexArray, second: IndexArray, max_cuts: int) -> tuple[IndexArray, IndexArray]:
    """The most negative products of entries of p that are not known yet, nor those of partners.

    All of them at once would be a matrix of (2 n)^2 entries; a few rows at a time stay in the cache.
    """
    number, samples = len(products), len(products) // 2
    known = np.sort(np.concatenate([first * number + second, np.arange(samples) * (number + 1) + samples]))
    least, keys, values = 0.0, [np.zeros(0, dtype=np.intp)], [np.zeros(0)]
    height = max(1, _BLOCK // max(number, 1))
    for top in range(0, number, height):
        rows = products[top : top + height]
        overlaps = (rows @ products[top:].T).ravel()  # row i from column top on: those before i come twice
        found = np.flatnonzero(overlaps < min(_SMALLEST_CUT * least, 0.0))
        upper, columns = top + found // (number - top), top + found % (number - top)
        is_new = columns > upper
        key = (upper * number + columns)[is_new]
        spots = np.minimum(np.searchsorted(known, key), len(known) - 1)
        unknown = known[spots] != key
        keys.append(key[unknown])
        values.append(overlaps[found[is_new][unknown]])
        least = min(least, float(np.min(values[-1], initial=0.0)))
    key, value = np.concatenate(keys), np.concatenate(values)
    kept = value < _SMALLEST_CUT * least
    key, value = key[kept], value[kept]
    if len(value) > max_cuts:
        key = key[np.argpartition(value, max_cuts)[:max_cuts]]
    return key // number, key % number


def _projected(targets: FloatArray) -> FloatArray:
    """Rows (height, vector) projected on ``||vector|| <= height``, in place."""
    heights, vectors = targets[:, 0], targets[:, 1:]
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    raised = np.where(norms <= heights, heights, np.maximum(0.5 * (heights + norms), 0.0))
    vectors *= np.minimum(raised / np.maximum(norms, 1e-300), 1.0)[:, None]
    targets[:, 0] = raised
    return targets
