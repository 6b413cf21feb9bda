"""The best majorant of a one-sided sphere problem by quartics and tilts: a semidefinite program. CVXPY only."""

from __future__ import annotations

from itertools import combinations_with_replacement, product

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def quartic_sandwich_value(rows: FloatArray, duals: FloatArray, linear: FloatArray) -> float:
    """Maximum over pseudo-moments of degree four on the unit sphere of the majorants' pointwise minima.

    The least mean of an even quartic above ``|t|`` on [-1, 1] is, by duality, the largest first moment of a distribution of
    ``|t|`` on [0, 1] with the given second and fourth moments: two semidefinite constraints a row. Below, a mixture
    with t and -t is allowed: the least first moment, but no less than that of t.
    """
    rank = rows.shape[1]
    # On the sphere 1 is a combination of products: with it in the basis no moment matrix would be positive definite.
    basis = [m for degree in (1, 2) for m in combinations_with_replacement(range(rank), degree)]
    index: dict[tuple[int, ...], int] = {}
    table = np.array([[index.setdefault(tuple(sorted(a + b)), len(index)) for b in basis] for a in basis])
    moments = cp.Variable(len(index))

    def on_sphere(factors: tuple[int, ...]) -> cp.Expression:
        return sum(moments[index[tuple(sorted((*factors, k, k)))]] for k in range(rank))

    constraints = [
        cp.reshape(moments[table.ravel()], table.shape, order="C") >> 0,
        on_sphere(()) == 1.0,
        *(on_sphere(m) == moments[index[m]] for m in basis if len(m) == 2),
    ]
    lengths = np.linalg.norm(rows, axis=1)
    units, weights = rows / lengths[:, None], 0.5 * duals * lengths

    def means(degree: int) -> cp.Expression:
        matrix = np.zeros((len(rows), len(index)))
        for factors in product(range(rank), repeat=degree):
            matrix[:, index[tuple(sorted(factors))]] += np.prod(units[:, list(factors)], axis=1)
        return matrix @ moments

    first, second, third, fourth = cp.Variable(len(rows)), means(2), cp.Variable(len(rows)), means(4)
    for a, b, c, d in zip(first, second, third, fourth, strict=True):
        constraints.append(cp.bmat([[1.0, a, b], [a, b, c], [b, c, d]]) >> 0)
        constraints.append(cp.bmat([[a - b, b - c], [b - c, c - d]]) >> 0)
    # Degree one, by the sphere.
    mean = cp.hstack([on_sphere((k,)) for k in range(rank)])
    objective = (linear + 0.5 * duals @ rows) @ mean + weights @ first
    below = duals < 0
    constraints += [first[below] >= sign * (units @ mean)[below] for sign in (1.0, -1.0)]
    unit = float(np.abs(weights).sum() + np.linalg.norm(linear))
    problem = cp.Problem(cp.Maximize(objective / unit), constraints)
    problem.solve(solver=cp.CLARABEL)
    return max(0.0, unit * float(problem.value))
