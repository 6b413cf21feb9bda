"""Two-layer oracles that need no local ascent first, because they see all maxima at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.row_space import UNIT_ROUNDOFF, RowSpace
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem
from torch_strongdual.certification.oracles.two_layer import AbstractTwoLayerOracle, TwoLayerState

__all__ = ["AbstractDirectOracle", "distinct_points"]

FloatArray = NDArray[np.float64]


class AbstractDirectOracle(AbstractTwoLayerOracle):
    """Base of the closed-form oracles: ``maximise`` takes ``|w|`` of one output as it is, without splitting it by sign."""

    def _reduced_bound(self, state: TwoLayerState, outputs: RowSpace, request: BoundRequest) -> SphereBound:
        """Bound the problem in reduced coordinates, both signs in one go."""
        rows, duals = state.row_space.rows, outputs.rows
        if (reason := self.limits(state.row_space.rank, rows.shape[0], outputs.rank)) is not None:
            empty = np.zeros((0, rows.shape[1]))
            return SphereBound(upper=float("inf"), lower=0.0, points=empty, stats={"limited_by": reason})
        slope = next(a.negative_slope for a in state.spec.activations if not a.is_identity)
        problem = SphereProblem(rows=rows, duals=(1.0 - slope) * duals, linear=slope * (rows.T @ duals))
        found = self.maximise(problem, request, np.zeros((0, rows.shape[1])))
        # Rounding of the products that made the problem: (1 - a) Lam and a X'Lam.
        size = float(np.linalg.norm(duals, axis=1) @ np.linalg.norm(rows, axis=1))
        rounding = 4.0 * (rows.shape[0] + 8) * UNIT_ROUNDOFF * (1.0 + abs(slope)) * size if slope else 0.0
        return SphereBound(upper=found.upper + rounding, lower=found.lower, points=found.points, stats=found.stats)


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
