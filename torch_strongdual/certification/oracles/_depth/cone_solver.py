"""Quadratic programs under linear inequalities, by Clarabel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    import clarabel
    from scipy import sparse

    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.max_threads = 1
    settings.tol_gap_rel = settings.tol_gap_abs = settings.tol_feas = _ACCURACY
    settings.time_limit = max(_LEAST_SECONDS, min(deadline.remaining, 1e6))
    kinds = [clarabel.ZeroConeT(num_equalities), clarabel.NonnegativeConeT(len(limits) - num_equalities)]
    quadratic = sparse.diags(curvatures, format="csc")
    found = clarabel.DefaultSolver(quadratic, costs, sparse.csc_matrix(left), limits, kinds, settings).solve()
    point, multipliers = np.array(found.x), np.array(found.z)
    if str(found.status) not in ("Solved", "AlmostSolved") or not (np.isfinite(point).all() and np.isfinite(multipliers).all()):
        return None
    return ConeSolution(point=point, multipliers=np.maximum(multipliers, 0.0), objective=float(found.obj_val))
