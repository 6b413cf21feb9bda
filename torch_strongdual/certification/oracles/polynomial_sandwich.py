"""A polynomial relaxation of degree four: the tightest bound for many samples of a rank too high for boxes."""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._sandwich.problem import UnitRows
from torch_strongdual.certification.oracles._sandwich.search import find_quartic_majorant
from torch_strongdual.certification.oracles.abstract_one_output_oracle import AbstractOneOutputOracle
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.local_ascent import local_maxima
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem

__all__ = ["PolynomialSandwich"]

FloatArray = NDArray[np.float64]


@final
class PolynomialSandwich(AbstractOneOutputOracle):
    r"""Upper bounds from polynomials of degree four above every term, their sum bounded by an eigenvalue.

    :math:`(t)_+ = t/2 + |t|/2`, and :math:`|t|` lies between even quartics that touch it where they are wanted; below, it
    also exceeds t and -t, which is exact where the sign of t is known. The weighted sum is a polynomial of degree four
    in :math:`u`, and any of its Gram matrices bounds its maximum over the sphere by an eigenvalue. Polynomials and Gram
    matrix are chosen by L-BFGS on a smoothed eigenvalue; *any* of them give a bound, proven by a Cholesky factorisation in
    float64, so that the oracle can stop at any time.

    Use it for more samples than :class:`DoublyNonnegativeRelaxation` takes and a rank above some ten; an iteration
    takes an eigendecomposition of order :math:`r (r + 3) / 2` for rank r, and time grows linearly with the number of samples.
    What is lost is the distance of the quartics from :math:`|t|`, and more time does not win it back.

    Several outputs: :math:`(\sum_j \kappa_j^2)^{1/2}` over the outputs' own bounds, in principal coordinates of the outputs;
    for two outputs also from a fan of directions, which loses at most 2 %.

    Args:
        max_rank: Refuse higher ranks: memory grows with the fourth power of the rank, time with the sixth.

    Example:
        >>> import torch
        >>> from torch_strongdual.certification.deadline import Deadline
        >>> from torch_strongdual.nn.branch_spec import BranchActivation, BranchSpec
        >>> spec = BranchSpec(widths=(3, 1, 1), activations=(BranchActivation(),))
        >>> oracle = PolynomialSandwich()
        >>> state = oracle.init(spec, torch.eye(3))
        >>> found = oracle.bound(state, torch.tensor([[3.0], [4.0], [-2.0]]), BoundRequest(deadline=Deadline(5.0)))
        >>> found.lower <= 5.0 + 1e-9 and 5.0 <= found.upper <= 5.5
        True

    References:
        Lasserre, "Global optimization with polynomials and the problem of moments", SIAM J. Optim. 11, 2001.
    """

    effort = "iterations"

    def __init__(self, *, max_rank: int = 24) -> None:
        self.max_rank = max_rank

    def limits(self, rank: int, num_rows: int, num_outputs: int) -> str | None:
        """The rank matters, not the number of samples."""
        if rank > self.max_rank:
            return f"rank {rank} is above max_rank={self.max_rank} of PolynomialSandwich"
        return None

    def one_sided(self, problem: SphereProblem, request: BoundRequest, starts: FloatArray) -> SphereBound:
        """See :meth:`AbstractOneOutputOracle.one_sided`."""
        if problem.rank == 0 or not (problem.linear.any() or (problem.duals > 0).any()):
            return SphereBound(upper=0.0, lower=0.0, points=np.zeros((0, problem.rank)))
        points = starts if len(starts) else local_maxima(problem, deadline=request.deadline.fraction(0.3))
        lower = float(np.max(problem.values(points), initial=0.0))
        scaled = UnitRows.of(problem)
        bound, iterations = scaled.crude_maximum, 0.0
        asked, attained = scaled.request(request), lower / scaled.unit
        if bound > 0.0 and not (request.is_met(scaled.upper(bound), lower) or request.deadline.expired):
            found = find_quartic_majorant(
                scaled,
                points[0] if len(points) else np.zeros(problem.rank),
                level=attained if attained > 1e-3 * bound else bound,
                is_enough=lambda value: asked.is_met((1.0 + 1e-7) * value, attained),
                deadline=request.deadline,
            )
            bound, iterations = min(bound, found.majorant.proven_maximum(scaled)), float(found.iterations)
        upper = scaled.upper(bound)
        stats: dict[str, float | str] = {"iterations": iterations}
        if request.is_met(upper, lower):
            return SphereBound(upper=upper, lower=lower, points=points, stats=stats)
        is_late = request.deadline.expired
        stats["limited_by"] = "time" if is_late else "looseness of the polynomial relaxation"
        return SphereBound(upper=upper, lower=lower, points=points, stats=stats, is_exhausted=not is_late)
