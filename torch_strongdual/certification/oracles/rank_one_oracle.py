"""The dual norm on data of rank one: two rays."""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.abstract_two_layer_oracle import AbstractTwoLayerOracle
from torch_strongdual.certification.oracles.row_space import UNIT_ROUNDOFF
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem

__all__ = ["RankOneOracle"]


@final
class RankOneOracle(AbstractTwoLayerOracle):
    r"""Exact dual norm of two-layer (leaky) ReLU branches on data :math:`X = t v'`, any number of outputs.

    A neuron sees the data along v only, from one side or the other:
    :math:`\kappa = \|v\| \max(\|\Lambda' s(t)\|, \|\Lambda' s(-t)\|)`.

    Example:
        >>> import torch
        >>> from torch_strongdual.certification.deadline import Deadline
        >>> from torch_strongdual.nn.branch_spec import BranchActivation, BranchSpec
        >>> oracle = RankOneOracle()
        >>> state = oracle.init(BranchSpec(widths=(1, 1, 1), activations=(BranchActivation(),)), torch.tensor([[2.0], [-1.0]]))
        >>> found = oracle.bound(state, torch.ones(2, 1).double(), BoundRequest(deadline=Deadline()))
        >>> round(found.upper, 9), round(found.lower, 9)
        (2.0, 2.0)
    """

    def needs_ascent(self, problem: SphereProblem) -> bool:
        """Never: all maxima are seen at once, of both signs."""
        return False

    def limits(self, rank: int, num_rows: int, num_outputs: int) -> str | None:
        """Rank at most one."""
        return None if rank <= 1 else f"RankOneOracle is for data of rank one; these have rank {rank}"

    def maximise(self, problem: SphereProblem, request: BoundRequest, starts: NDArray[np.float64]) -> SphereBound:
        """Evaluate both ends of the interval, with a bound on the rounding of the sum."""
        if problem.rank == 0:
            return SphereBound(upper=0.0, lower=0.0, points=np.zeros((0, 0)))
        ends = np.array([[1.0], [-1.0]])
        values = problem.values(ends)
        rounding = 2.0 * (problem.num_rows + problem.num_outputs + 8) * UNIT_ROUNDOFF * problem.magnitude()
        order = np.argsort(-values, kind="stable")
        return SphereBound(
            upper=max(float(values.max()), 0.0) + rounding + 1e-150,  # 1e-150: squares below it vanish
            lower=max(float(values.max()), 0.0),
            points=ends[order][values[order] > 0],
        )
