"""A quadratic objective plus norms of groups, groups kept in polyhedral cones: the program behind the cell refit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification._activation_patterns import MOST_ROUNDS, VIOLATION, near_samples
from torch_strongdual.certification._clarabel import Cone, clarabel_solution
from torch_strongdual.certification.deadline import Deadline

__all__ = ["solved_cone_program"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_ACCURACY = 1e-11
_FEASIBILITY = 1e-10
_LEAST_SECONDS = 1e-3


def solved_cone_program(
    hessian: FloatArray,  # shape: (p * r + b, p * r + b)
    linear: FloatArray,  # shape: (p * r + b,)
    price: float,
    normals: FloatArray,  # shape: (n, r)
    patterns: BoolArray,  # shape: (p, n)
    guess: FloatArray,  # shape: (p, r)
    *,
    deadline: Deadline,
) -> FloatArray | None:  # shape: (p * r + b,)
    r"""Minimise ``x'Hx / 2 + g'x + price * sum_j ||a_j||`` over ``x = (a_1, ..., a_p, bias)``, each ``a_j`` within its pattern.

    ``a_j`` keeps to its pattern if ``normals_i'a_j >= 0`` where ``patterns_ji``, and ``<= 0`` elsewhere. Only the constraints
    near ``guess`` are given to the solver at first; those that turn out violated are added, and it is solved again.

    Args:
        hessian: H, positive semidefinite.
        linear: g.
        price: Above zero.
        normals: Unit vectors (or zero).
        patterns: One row a group.
        guess: Where the solution may be, to choose constraints by.
        deadline: When to stop.

    Returns:
        The solution, or where the time ended; ``None`` if the solver does not return one.
    """
    number, dimension = guess.shape
    signed = np.where(patterns[:, :, None], normals, -normals)  # (p, n, r)
    chosen = near_samples(guess, normals)
    for _ in range(MOST_ROUNDS):
        cones = [signed[j][chosen[j]] for j in range(number)]
        solution = _solved(hessian, linear, price, cones, dimension, seconds=deadline.remaining)
        if solution is None:
            return None
        groups = solution[: number * dimension].reshape(number, dimension)
        values = np.einsum("jnr,jr->jn", signed, groups)
        violated = (values < -VIOLATION * np.linalg.norm(groups, axis=1).max(initial=0.0)) & ~chosen
        if deadline.expired or not violated.any():
            break
        chosen |= violated
    return solution


def _solved(
    hessian: FloatArray, linear: FloatArray, price: float, cones: list[FloatArray], dimension: int, *, seconds: float
) -> FloatArray | None:
    """One program; variables are ``x`` and the norms ``t``."""
    from scipy import sparse

    number, size = len(cones), len(linear)
    total = size + number
    quadratic = sparse.block_diag([sparse.csc_matrix(np.triu(hessian)), sparse.csc_matrix((number, number))])
    polyhedral = sparse.block_diag([sparse.csr_matrix(-cone) for cone in cones], format="csr")
    polyhedral = sparse.hstack([polyhedral, sparse.csr_matrix((polyhedral.shape[0], total - polyhedral.shape[1]))])
    entries = np.arange(number * dimension)
    # (t_j, a_j) in the second-order cone: rows t_j, a_j1, ..., a_jr.
    rows = np.concatenate(
        [np.arange(number) * (dimension + 1), entries // dimension * (dimension + 1) + entries % dimension + 1]
    )
    columns = np.concatenate([size + np.arange(number), entries])
    norms = sparse.csr_matrix((-np.ones(len(rows)), (rows, columns)), shape=(number * (dimension + 1), total))
    matrix = sparse.vstack([polyhedral, norms])
    norm: Cone = ("second order", dimension + 1)
    kinds: list[Cone] = [("nonnegative", polyhedral.shape[0]), *[norm] * number]
    found = clarabel_solution(
        quadratic,
        np.concatenate([linear, np.full(number, price)]),
        matrix,
        np.zeros(matrix.shape[0]),
        kinds,
        accuracy=_ACCURACY,
        feasibility=_FEASIBILITY,
        seconds=max(seconds, _LEAST_SECONDS),
    ).point[:size]
    return found if np.isfinite(found).all() and found.any() else None
