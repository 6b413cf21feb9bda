"""A quadratic (trust-region) relaxation: valid for two-layer branches of any size, tight when there are few samples."""

from __future__ import annotations

import dataclasses
import math
from typing import final

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._quadratic.bilinear_majorant import bilinear_maximum
from torch_strongdual.certification.oracles._quadratic.majorant_search import find_majorant
from torch_strongdual.certification.oracles._verified_psd import gamma
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.abstract_two_layer_oracle import AbstractTwoLayerOracle, two_sided_bound
from torch_strongdual.certification.oracles.local_ascent import local_maxima
from torch_strongdual.certification.oracles.row_space import power_of_two_scale
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem

__all__ = ["QuadraticRelaxation"]

FloatArray = NDArray[np.float64]


@final
class QuadraticRelaxation(AbstractTwoLayerOracle):
    r"""Upper bounds from quadratic majorants, maximised over the sphere exactly.

    Every term :math:`\lambda_i (x_i'u)_+` is majorised by a quadratic with free parameters; the maximum of the sum over the
    sphere is a trust-region problem, and the parameters are chosen by convex optimisation. All parameters give valid bounds, so
    the oracle can stop at any time; the final bound is proven by one Cholesky factorisation in floating point.

    Use it when there are no more samples than about twice the rank of the data (the bound exceeds the maximum by 1-2 % at a
    quarter of the rank, by up to 20 % at the rank), or as the first bound of a search that refines it. It is valid, but by a
    factor of 2 to 10 loose, for many samples in a few dimensions.

    Several outputs: the smaller of two bounds. One majorises :math:`v'\Lambda'(Xu)_+` jointly in u and the output
    direction v; the other is :math:`(\sum_j \kappa_j^2)^{1/2}` over the outputs' own bounds.

    Args:
        accuracy: Relative accuracy to which the parameters are optimised.

    Example:
        >>> import torch
        >>> from torch_strongdual.certification.deadline import Deadline
        >>> from torch_strongdual.nn.branch_spec import BranchActivation, BranchSpec
        >>> spec = BranchSpec(widths=(2, 1, 1), activations=(BranchActivation(),))
        >>> oracle = QuadraticRelaxation()
        >>> state = oracle.init(spec, torch.eye(2))
        >>> bound = oracle.bound(state, torch.tensor([[3.0], [4.0]]).double(), BoundRequest(deadline=Deadline()))
        >>> round(bound.lower, 4), round(bound.upper, 2)  # orthonormal rows: the norm of the positive part
        (5.0, 5.0)

    References:
        Wang, Ergen, Pilanci, "Parallel Deep Neural Networks Have Zero Duality Gap", ICLR 2023 (the dual problem).
        https://arxiv.org/abs/2110.06482
    """

    def __init__(self, *, accuracy: float = 1e-3) -> None:
        self.accuracy = accuracy

    def maximise(self, problem: SphereProblem, request: BoundRequest, starts: FloatArray) -> SphereBound:
        """Bound the maximum; see :meth:`AbstractTwoLayerOracle.maximise`."""
        if not problem.is_finite:
            return SphereBound.nothing(problem, "non-finite numbers")
        row_scale = power_of_two_scale(problem.rows)
        parts = [power_of_two_scale(problem.duals) * row_scale] if problem.duals.any() else []
        scale = max([*parts, *([power_of_two_scale(problem.linear)] if problem.linear.any() else [])], default=1.0)
        # Powers of two: nothing is rounded.
        scaled = SphereProblem(
            rows=problem.rows / row_scale,
            duals=problem.duals / (scale / row_scale),
            linear=problem.linear / scale,
            one_sided=problem.one_sided,
        )
        target = None if request.target is None else request.target / scale
        asked = BoundRequest(rtol=request.rtol, floor=request.floor / scale, target=target, deadline=request.deadline)
        found = self._one_sided(scaled, asked, starts) if problem.one_sided else self._two_sided(scaled, asked, starts)
        upper = math.nextafter(found.upper * scale, math.inf) if found.upper > 0.0 else 0.0  # the product may underflow
        return dataclasses.replace(found, upper=upper, lower=found.lower * scale)

    def _one_sided(self, problem: SphereProblem, request: BoundRequest, starts: FloatArray) -> SphereBound:
        """One output, one sign."""
        points = local_maxima(problem, starts if len(starts) else None, deadline=request.deadline.fraction(0.3))
        lower = float(np.max(problem.values(points), initial=0.0))
        upper = problem.magnitude() * (1.0 + gamma(problem.num_rows + problem.rank + 8))
        if problem.rank and not request.is_met(upper, lower):
            majorant = find_majorant(
                problem,
                points[0] if len(points) else np.zeros(problem.rank),
                rtol=self.accuracy,
                is_enough=lambda value: request.is_met((1.0 + 1e-9) * value, lower) and value <= (1.0 + request.rtol) * lower,
                deadline=request.deadline,
            )
            upper = min(upper, majorant.proven_maximum())
        return _with_limit(SphereBound(upper=upper, lower=lower, points=points), request)

    def _two_sided(self, problem: SphereProblem, request: BoundRequest, starts: FloatArray) -> SphereBound:
        """The norm of any number of outputs."""
        if problem.num_outputs == 1:
            return two_sided_bound(self, problem, request, starts)
        points = local_maxima(problem, starts if len(starts) else None, deadline=request.deadline.fraction(0.3))
        lower = float(np.max(problem.values(points), initial=0.0))
        upper = problem.magnitude() * (1.0 + gamma(problem.num_rows + problem.rank + problem.num_outputs + 8))
        joint = bilinear_maximum(problem, deadline=request.deadline.fraction(0.5))
        method = "joint majorant"
        upper = min(upper, joint)
        if not request.is_met(upper, lower):
            columns = self._column_bound(problem, request)
            if columns < upper:
                upper, method = columns, "sum over outputs"
        return _with_limit(SphereBound(upper=upper, lower=lower, points=points, stats={"outputs": method}), request)

    def _column_bound(self, problem: SphereProblem, request: BoundRequest) -> float:
        """``sqrt(sum_j kappa_j^2)``, each with an equal share of the time left."""
        total = 0.0
        for index in range(problem.num_outputs):
            unit = np.zeros(problem.num_outputs)
            unit[index] = 1.0
            column = SphereProblem(
                rows=problem.rows, duals=problem.duals[:, index : index + 1], linear=problem.linear[:, index : index + 1]
            )
            deadline = request.deadline.fraction(1.0 / (problem.num_outputs - index))
            asked = BoundRequest(rtol=request.rtol, deadline=deadline)
            total += two_sided_bound(self, column, asked, np.zeros((0, problem.rank))).upper ** 2
        return math.sqrt(total) * (1.0 + gamma(problem.num_outputs + 4))


def _with_limit(found: SphereBound, request: BoundRequest) -> SphereBound:
    """Say what limited the bound, if it is not as tight as asked for."""
    if found.upper <= (1.0 + request.rtol) * found.lower:
        return found
    is_late = request.deadline.expired
    reason = "time" if is_late else "looseness of the quadratic relaxation"
    return dataclasses.replace(found, stats={**found.stats, "limited_by": reason}, is_exhausted=not is_late)
