"""Quadratic programs under linear inequalities, by Clarabel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification._clarabel import clarabel_solution
from torch_strongdual.certification.deadline import Deadline

__all__ = ["ConeSolution", "solved_program"]

FloatArray = NDArray[np.float64]

_ACCURACY = 1e-5
_LEAST_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConeSolution:
    """Solution of a program.

    Args:
        point: Its variables.
        multipliers: Of the inequalities, nonnegative (those of equations are cut off at zero).
        objective: What is attained.
    """

    point: FloatArray
    multipliers: FloatArray
    objective: float


def solved_program(
    costs: FloatArray,  # shape: (m,)
    curvatures: FloatArray,  # shape: (m,)
    left: Any,  # sparse, shape: (k, m)
    limits: FloatArray,  # shape: (k,)
    deadline: Deadline,
    *,
    num_equalities: int = 0,
) -> ConeSolution | None:
    """Minimise ``costs'x + sum_j curvatures_j x_j^2 / 2`` subject to ``left x <= limits``; ``None`` if that failed.

    The first ``num_equalities`` rows are equations.

    To a few digits only, from inside: the solution lies in the middle of those that are equally good, which is what a method of
    cutting planes is served best by.
    """
    from scipy import sparse

    found = clarabel_solution(
        sparse.diags(curvatures),
        costs,
        left,
        limits,
        [("zero", num_equalities), ("nonnegative", len(limits) - num_equalities)],
        accuracy=_ACCURACY,
        feasibility=_ACCURACY,
        seconds=max(_LEAST_SECONDS, min(deadline.remaining, 1e6)),
    )
    if not (found.is_solved and found.is_finite):
        return None
    return ConeSolution(point=found.point, multipliers=np.maximum(found.multipliers, 0.0), objective=found.objective)
