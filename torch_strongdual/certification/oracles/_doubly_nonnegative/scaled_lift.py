"""A sphere problem in the units in which its relaxation is solved, and the way back for bounds."""

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
FloatArray = NDArray[np.float64]

_NEGLIGIBLE = 1e-100  # rows this much shorter than the longest are bounded by their norm


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScaledLift:
    """A problem with rows of norm one, in units in which its weights have norm about one.

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
    def of(cls, problem: SphereProblem, kept: BoolArray | None = None, directions: FloatArray | None = None) -> ScaledLift:
        """Scale ``problem``.

        Args:
            problem: One output and one sign, or any outputs without a linear part; then the lift is one of inputs and outputs.
            kept: Samples that stay, with rows that are not negligible, shape (n,); default: all those of weight.
            directions: Of the outputs, whose signs may be decided, shape (k, c); default: the axes.
        """
        row_scale, dual_scale = power_of_two_scale(problem.rows), power_of_two_scale(problem.duals)
        rows, duals = problem.rows / row_scale, problem.duals / dual_scale
        norms, sizes = np.linalg.norm(rows, axis=1), np.abs(duals).sum(axis=1)
        kept = (norms > _NEGLIGIBLE) & ((sizes != 0.0) if kept is None else kept)
        # |lam_i (x_i'u)_+| <= |lam_i| ||x_i||; the second term is for norms that underflow.
        dropped = float(sizes[~kept] @ (norms[~kept] + _NEGLIGIBLE))
        dropped *= 1.0 + gamma(problem.num_rows + problem.rank + problem.num_outputs + 8)
        weights = duals[kept] * norms[kept, None]
        linear = problem.linear / row_scale / dual_scale
        # The largest of both decides; powers of two round nothing.
        scale = power_of_two_scale(np.array([np.linalg.norm(weights), np.linalg.norm(linear)]))
        rows, weights, linear = rows[kept] / norms[kept, None], weights / scale, linear / scale
        if problem.one_sided:
            lift = Lift.of(rows, weights[:, 0], linear[:, 0])
        else:
            lift = Lift.of_outputs(rows, weights, np.eye(problem.num_outputs) if directions is None else directions)
        size = float(np.abs(weights).sum() + np.linalg.norm(linear))
        # |fl(lam ||x||) fl(x / ||x||) - lam x| <= gamma_3 |lam x|, entry by entry, whatever was computed as ||x||.
        allowance = gamma(8) * size + dropped / scale
        crude = size * (1.0 + gamma(problem.num_rows + problem.rank + problem.num_outputs + 8))
        halves = 1.0 if problem.one_sided else 2.0
        return cls(lift=lift, unit=halves * scale * dual_scale * row_scale, allowance=allowance, crude_upper=crude)

    def upper(self, value: float) -> float:
        """A bound on the original problem from one on the scaled problem."""
        total = (value + self.allowance) * (1.0 + gamma(2)) * self.unit
        return math.nextafter(total, math.inf) if math.isfinite(total) else math.inf

    def request(self, request: BoundRequest) -> BoundRequest:
        """The same request in the units of the scaled problem."""
        return request.before(self.unit, self.allowance)
