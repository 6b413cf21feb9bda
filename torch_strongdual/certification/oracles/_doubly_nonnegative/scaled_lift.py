"""A one-sided problem in the units in which its relaxation is solved, and the way back for bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift
from torch_strongdual.certification.oracles._verified_psd import gamma
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.row_space import power_of_two_scale
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem

__all__ = ["ScaledLift"]

BoolArray = NDArray[np.bool_]

_NEGLIGIBLE = 1e-100  # rows this much shorter than the longest are bounded by their norm


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScaledLift:
    """A one-sided problem with rows of norm one, in units in which its weights have norm about one.

    Args:
        lift: The problem; samples of no weight are left out.
        unit: Of its values: a power of two.
        allowance: What left-out samples, and the rounding of rows and weights, may add to its maximum.
        crude_upper: A bound that needs no search.
    """

    lift: Lift
    unit: float
    allowance: float
    crude_upper: float

    @classmethod
    def of(cls, problem: SphereProblem, kept: BoolArray | None = None) -> ScaledLift:
        """Scale ``problem``.

        Args:
            problem: One output, one sign.
            kept: Samples that stay, with rows that are not negligible, shape (n,); default: all those of weight.
        """
        row_scale, dual_scale = power_of_two_scale(problem.rows), power_of_two_scale(problem.duals)
        rows, duals = problem.rows / row_scale, problem.duals[:, 0] / dual_scale
        norms = np.linalg.norm(rows, axis=1)
        kept = (norms > _NEGLIGIBLE) & ((duals != 0.0) if kept is None else kept)
        # |lam_i (x_i'u)_+| <= |lam_i| ||x_i||; the second term is for norms that underflow.
        dropped = float(np.abs(duals[~kept]) @ (norms[~kept] + _NEGLIGIBLE))
        dropped *= 1.0 + gamma(problem.num_rows + problem.rank + 8)
        weights = duals[kept] * norms[kept]
        linear = problem.linear[:, 0] / row_scale / dual_scale
        # The largest of both decides; powers of two round nothing.
        scale = power_of_two_scale(np.array([np.linalg.norm(weights), np.linalg.norm(linear)]))
        lift = Lift.of(rows[kept] / norms[kept, None], weights / scale, linear / scale)
        size = float(np.abs(lift.weights).sum() + np.linalg.norm(lift.linear))
        # |fl(lam ||x||) fl(x / ||x||) - lam x| <= gamma_3 |lam x|, entry by entry, whatever was computed as ||x||.
        allowance = gamma(8) * size + dropped / scale
        crude = size * (1.0 + gamma(problem.num_rows + problem.rank + 8))
        return cls(lift=lift, unit=scale * dual_scale * row_scale, allowance=allowance, crude_upper=crude)

    def upper(self, value: float) -> float:
        """A bound on the original problem from one on the scaled problem."""
        total = (value + self.allowance) * (1.0 + gamma(2)) * self.unit
        return math.nextafter(total, math.inf) if math.isfinite(total) else math.inf

    def request(self, request: BoundRequest) -> BoundRequest:
        """The same request in the units of the scaled problem."""
        return request.before(self.unit, self.allowance)
