"""Clarabel, an interior-point solver of convex quadratic programs over cones, behind one call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.errors import MissingDependencyError

__all__ = ["ClarabelSolution", "Cone", "clarabel_solution"]

FloatArray = NDArray[np.float64]
Cone = tuple[Literal["zero", "nonnegative", "second order", "exponential"], int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClarabelSolution:
    """Where the solver stopped.

    Args:
        point: The variables.
        multipliers: One a row of the constraints, in the dual cones up to the accuracy asked for.
        objective: What is attained.
        is_solved: Whether the solver says so, perhaps to a reduced accuracy.
    """

    point: FloatArray
    multipliers: FloatArray
    objective: float
    is_solved: bool

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are."""
        return bool(np.isfinite(self.point).all() and np.isfinite(self.multipliers).all())


def clarabel_solution(
    quadratic: Any,  # sparse, shape: (m, m), its upper triangle
    linear: FloatArray,  # shape: (m,)
    matrix: Any,  # sparse, shape: (k, m)
    limits: FloatArray,  # shape: (k,)
    cones: Sequence[Cone],
    *,
    accuracy: float,
    feasibility: float,
    seconds: float = math.inf,
) -> ClarabelSolution:
    """Minimise ``x'Qx / 2 + q'x`` with ``limits - matrix x`` in the cones, one after the other, on one thread.

    Args:
        quadratic: Q, positive semidefinite.
        linear: q.
        matrix: Rows of all cones.
        limits: One a row.
        cones: Kind and number of rows of each.
        accuracy: Gap, absolute and relative, to stop at.
        feasibility: Violation of the constraints to stop at.
        seconds: Time after which to stop.

    Raises:
        MissingDependencyError: If Clarabel is not installed.
    """
    try:
        import clarabel
    except ImportError as error:
        raise MissingDependencyError("clarabel", purpose="Solving programs over cones") from error
    from scipy import sparse

    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.max_threads = 1
    settings.tol_gap_abs = settings.tol_gap_rel = accuracy
    settings.tol_feas = feasibility
    settings.time_limit = seconds
    kinds = {
        "zero": clarabel.ZeroConeT,
        "nonnegative": clarabel.NonnegativeConeT,
        "second order": clarabel.SecondOrderConeT,
        "exponential": lambda size: clarabel.ExponentialConeT(),  # of three rows
    }
    found = clarabel.DefaultSolver(
        sparse.csc_matrix(quadratic),
        linear,
        sparse.csc_matrix(matrix),
        limits,
        [kinds[kind](size) for kind, size in cones],
        settings,
    ).solve()
    return ClarabelSolution(
        point=np.array(found.x, dtype=np.float64),
        multipliers=np.array(found.z, dtype=np.float64),
        objective=float(found.obj_val),
        is_solved=str(found.status) in ("Solved", "AlmostSolved"),
    )
