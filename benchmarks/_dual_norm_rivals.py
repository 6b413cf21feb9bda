"""What else there is for a dual norm of one output: a general solver, complete enumeration, local ascent."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

__all__ = ["RivalResult", "ascended", "enumerated", "num_cells", "solved_by_scip"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RivalResult:
    """Bounds on the dual norm and the time they took.

    Args:
        upper: As the method claims it.
        lower: Attained.
        seconds: CPU time.
        is_complete: Whether it ended by itself.
    """

    upper: float
    lower: float
    seconds: float
    is_complete: bool


def solved_by_scip(rows: FloatArray, duals: FloatArray, *, gap: float, seconds: float) -> RivalResult:
    """Both signs as mixed-integer programs with one quadratic constraint, by SCIP; the limit is for both together.

    Raises:
        ImportError: If ``pyscipopt`` is not installed.
    """
    begin = time.process_time()
    uppers: list[float] = []
    lower, is_complete = 0.0, True
    for sign in (1.0, -1.0):
        left = seconds - (time.process_time() - begin)
        upper, value, is_done = _scip_side(rows, sign * duals, gap=gap, seconds=max(left, 0.0), known=lower)
        uppers.append(upper)
        lower, is_complete = max(lower, value), is_complete and is_done
    return RivalResult(upper=max(uppers), lower=lower, seconds=time.process_time() - begin, is_complete=is_complete)


def _scip_side(rows: FloatArray, duals: FloatArray, *, gap: float, seconds: float, known: float) -> tuple[float, float, bool]:
    """One-sided maximum: z_i stands for (x_i'u)_+, with a binary only where a larger z_i would pay."""
    import pyscipopt

    model = pyscipopt.Model()
    model.hideOutput()
    model.setParam("timing/clocktype", 1)  # CPU time
    model.setParam("limits/time", seconds)
    model.setParam("limits/gap", gap)
    if known > 0:
        model.setParam("limits/dual", (1.0 + gap) * known)  # the other sign is larger: no need to prove more
    point = [model.addVar(lb=-1.0, ub=1.0) for _ in range(rows.shape[1])]
    model.addCons(pyscipopt.quicksum(u * u for u in point) <= 1.0)
    outputs = []
    for row, dual in zip(rows, duals, strict=True):
        size = float(np.linalg.norm(row))
        output = model.addVar(lb=0.0, ub=size)
        hidden = pyscipopt.quicksum(float(x) * u for x, u in zip(row, point, strict=True))
        model.addCons(output >= hidden)
        if dual > 0:
            is_active = model.addVar(vtype="B")
            model.addCons(output <= hidden + size * (1 - is_active))
            model.addCons(output <= size * is_active)
        outputs.append(float(dual) * output)
    model.setObjective(pyscipopt.quicksum(outputs), "maximize")
    model.optimize()
    upper = max(float(model.getDualbound()), 0.0)
    value = float(model.getObjVal()) if model.getNSols() else 0.0
    upper = math.inf if upper >= 1e19 else upper
    is_done = model.getStatus() in ("optimal", "gaplimit", "duallimit")
    model.freeProb()
    return upper, max(value, 0.0), is_done


def num_cells(n: int, rank: int) -> int:
    """Sign patterns of n rows in general position (Cover)."""
    return 2 * sum(math.comb(n - 1, k) for k in range(rank))


def enumerated(rows: FloatArray, duals: FloatArray) -> RivalResult:
    """Every sign pattern, each with a projection on its cone (non-negative least squares); rows in general position.

    Every cell has a vertex, where rank - 1 rows vanish; around it all their signs occur.
    """
    begin = time.process_time()
    n, rank = rows.shape
    groups = np.array(list(itertools.combinations(range(n), rank - 1)))
    rays = np.linalg.svd(rows[groups])[2][:, -1]  # (m, rank), orthogonal to the rows of the group
    signs = np.sign(rays @ rows.T).astype(np.int8)
    found = []
    for flip in itertools.product((-1, 1), repeat=rank - 1):
        around = signs.copy()
        for column, sign in enumerate(flip):
            around[np.arange(len(groups)), groups[:, column]] = sign
        found += [np.packbits(around > 0, axis=1), np.packbits(around < 0, axis=1)]  # the opposite ray too
    patterns = np.unpackbits(np.unique(np.concatenate(found), axis=0), axis=1)[:, :n].astype(bool)
    best = 0.0
    for pattern in patterns:
        gradient = duals[pattern] @ rows[pattern]
        normals = np.where(pattern[:, None], rows, -rows).T
        for vector in (gradient, -gradient):
            if np.linalg.norm(vector) > best:
                best = max(best, float(nnls(normals, -vector)[1]))
    return RivalResult(upper=best, lower=best, seconds=time.process_time() - begin, is_complete=True)


def ascended(rows: FloatArray, duals: FloatArray, *, num_starts: int = 1000, num_steps: int = 60) -> RivalResult:
    """Normalised gradient steps of shrinking length from random directions: an estimate, no bound."""
    begin = time.process_time()
    best = 0.0
    for sign in (1.0, -1.0):
        points = np.random.default_rng(0).standard_normal((num_starts, rows.shape[1]))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        for step in range(num_steps):
            hidden = points @ rows.T
            best = max(best, float(np.max(np.maximum(hidden, 0.0) @ (sign * duals))))
            gradients = ((hidden > 0) * (sign * duals)) @ rows
            points = points + 2.0 * 0.85**step * gradients / np.linalg.norm(gradients, axis=1, keepdims=True).clip(1e-300)
            points /= np.linalg.norm(points, axis=1, keepdims=True)
    return RivalResult(upper=math.inf, lower=best, seconds=time.process_time() - begin, is_complete=True)
