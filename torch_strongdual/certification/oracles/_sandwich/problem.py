"""One-sided sphere problems with rows of norm one, and the way back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._verified_psd import gamma
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.row_space import power_of_two_scale
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem

__all__ = ["UnitRows"]

FloatArray = NDArray[np.float64]

_NEGLIGIBLE = 1e-100  # rows this much shorter than the longest are bounded by their norm


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnitRows:
    r"""``unit * (b'u + sum_i weights_i |rows_i'u|)`` is a one-sided problem up to ``allowance``.

    This is :math:`\lambda (x)_+ = \lambda x/2 + \lambda |x|/2` with :math:`\lambda_i \|x_i\| / 2` for a weight.

    Args:
        rows: Of norm at most one, rounding included, shape (n, r).
        weights: Of either sign, none zero; the largest entry of these and of ``linear`` is about one (n,).
        linear: ``b`` (r,).
        unit: Of the values: a power of two.
        allowance: What left-out rows, and the rounding of all arrays here, may add to the maximum.
    """

    rows: FloatArray
    weights: FloatArray
    linear: FloatArray
    unit: float
    allowance: float

    @classmethod
    def of(cls, problem: SphereProblem) -> UnitRows:
        """Normalise the rows; leave out those that have no weight."""
        row_scale, dual_scale = power_of_two_scale(problem.rows), power_of_two_scale(problem.duals)
        rows, duals = problem.rows / row_scale, problem.duals[:, 0] / dual_scale
        norms = np.linalg.norm(rows, axis=1) * (1.0 + gamma(problem.rank + 6))
        kept = (norms > _NEGLIGIBLE) & (np.abs(duals) > _NEGLIGIBLE)
        dropped = float(np.minimum(np.abs(duals), 2.0)[~kept] @ np.minimum(norms[~kept] + _NEGLIGIBLE, 4.0 * problem.rank))
        rows, norms, duals = rows[kept], norms[kept], duals[kept]
        weights = 0.5 * duals * norms
        linear = problem.linear[:, 0] / row_scale / dual_scale
        forming = float(np.abs(duals) @ norms + np.linalg.norm(linear))
        linear = linear + 0.5 * (rows.T @ duals)
        scale = power_of_two_scale(np.concatenate([weights, linear]))
        # Weights and rows carry three roundings each, `linear` those of a sum; |.| is 1-Lipschitz.
        allowance = gamma(problem.num_rows + problem.rank + 16) * forming + dropped * (1.0 + gamma(problem.num_rows + 8))
        return cls(
            rows=rows / norms[:, None],
            weights=weights / scale,
            linear=linear / scale,
            unit=scale * dual_scale * row_scale,
            allowance=allowance / scale,
        )

    @property
    def crude_maximum(self) -> float:
        """A bound that needs no search."""
        size = float(np.maximum(self.weights, 0.0).sum() + np.linalg.norm(self.linear))
        return size * (1.0 + gamma(len(self.weights) + len(self.linear) + 8))

    def upper(self, value: float) -> float:
        """A bound on the original problem from one on this."""
        total = (value + self.allowance) * (1.0 + gamma(4)) * self.unit
        return math.nextafter(total, math.inf) if math.isfinite(total) else math.inf

    def request(self, request: BoundRequest) -> BoundRequest:
        """The same request in the units of this problem."""
        return request.before(self.unit, self.allowance)
