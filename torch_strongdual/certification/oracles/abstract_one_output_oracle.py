"""What oracles share that know one output and one sign only: several outputs are bounded one direction at a time."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles._direction_cones import DirectionBound, bound_over_directions
from torch_strongdual.certification.oracles._verified_psd import gamma
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.abstract_two_layer_oracle import AbstractTwoLayerOracle, two_sided_bound
from torch_strongdual.certification.oracles.local_ascent import local_maxima
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem

__all__ = ["AbstractOneOutputOracle"]

FloatArray = NDArray[np.float64]


class AbstractOneOutputOracle(AbstractTwoLayerOracle):
    """Base of the oracles that know one output and one sign: a subclass gives :meth:`one_sided`.

    Both signs of one output are bounded in turn, several outputs along single directions of them.

    Attributes:
        effort: The key of ``stats`` that is added up over the directions.
    """

    effort: ClassVar[str]

    @abstractmethod
    def one_sided(self, problem: SphereProblem, request: BoundRequest, starts: FloatArray) -> SphereBound:
        """Bound a one-sided problem of finite numbers; see :meth:`AbstractTwoLayerOracle.maximise`."""

    def maximise(self, problem: SphereProblem, request: BoundRequest, starts: FloatArray) -> SphereBound:
        """Bound the maximum; see :meth:`AbstractTwoLayerOracle.maximise`."""
        if not problem.is_finite:
            return SphereBound.nothing(problem, "non-finite numbers")
        if problem.one_sided:
            return self.one_sided(problem, request, starts)
        if problem.num_outputs == 1:
            return two_sided_bound(self, problem, request, starts)
        return _bound_by_outputs(self, problem, request, starts)


def _bound_by_outputs(
    oracle: AbstractOneOutputOracle, problem: SphereProblem, request: BoundRequest, starts: FloatArray
) -> SphereBound:
    """Bound the norm of several outputs from single directions of them."""
    points = starts if len(starts) else local_maxima(problem, deadline=request.deadline.fraction(0.3))
    lower = float(np.max(problem.values(points), initial=0.0))
    rounding = 2.0 * gamma(problem.num_outputs + 4) * problem.magnitude()
    spent: list[float] = []

    def bound_along(direction: FloatArray, deadline: Deadline) -> DirectionBound:
        column = SphereProblem(
            rows=problem.rows, duals=problem.duals @ direction[:, None], linear=problem.linear @ direction[:, None]
        )
        asked = BoundRequest(rtol=request.rtol, deadline=deadline)
        found = two_sided_bound(oracle, column, asked, points)
        spent.append(float(found.stats.get(oracle.effort, 0.0)))
        return DirectionBound(upper=found.upper + rounding, images=problem.images(found.points))

    enough = max(request.floor, request.target or 0.0)
    found = bound_over_directions(
        bound_along,
        problem.num_outputs,
        images=problem.images(points),
        enough=enough,
        rtol=request.rtol,
        deadline=request.deadline,
    )
    stats: dict[str, float | str] = {"outputs": f"{found.num_directions} directions of the outputs"}
    stats[oracle.effort] = sum(spent)
    if not request.is_met(found.upper, lower):
        stats["limited_by"] = "time" if request.deadline.expired else "treating the outputs one by one"
    return SphereBound(upper=found.upper, lower=lower, points=points, stats=stats)
