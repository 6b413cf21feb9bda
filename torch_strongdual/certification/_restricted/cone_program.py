"""Training restricted to given branches as one program over cones, solved by Clarabel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from torch_strongdual.certification._clarabel import Cone, clarabel_solution
from torch_strongdual.certification._restricted.program_data import ProgramData
from torch_strongdual.errors import SolverError

__all__ = ["ConeProgramSolution", "solve_cone_program"]

FloatArray = NDArray[np.float64]

_ACCURACY = 1e-10  # Clarabel ends with what it can reach


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConeProgramSolution:
    """Optimum of a restricted program, in the units of the training problem.

    Args:
        coefficients: Shape ``(num_atoms, out_features)``; rows of atoms not used are small, not zero.
        dual_point: Multipliers of the outputs, shape ``(num_samples, out_features)``.
    """

    coefficients: Tensor
    dual_point: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Rows:
    """Rows ``limits - sum of blocks times variables`` that lie in cones.

    Args:
        blocks: Matrix of each variable that takes part, all of as many rows.
        limits: One a row.
        cones: One after the other.
    """

    blocks: Mapping[str, Any]
    limits: FloatArray
    cones: Sequence[Cone]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Loss:
    """A loss as ``x'Qx / 2 + q'x`` over the outputs and variables of its own.

    Args:
        linear: q, for each variable; those other than ``"outputs"`` are its own.
        rows: What holds its own variables above what they stand for.
        quadratic: Upper triangle of Q, by pairs of variables.
    """

    linear: Mapping[str, FloatArray]
    rows: Sequence[_Rows] = ()
    quadratic: Mapping[tuple[str, str], Any] = field(default_factory=dict)


def solve_cone_program(data: ProgramData, *, seconds: float = math.inf) -> ConeProgramSolution:
    """Minimise ``loss(F) + weights' |rows of V|`` subject to ``F = A V + 1 b'``.

    Args:
        data: What the program is about.
        seconds: Time limit for Clarabel.

    Raises:
        SolverError: If Clarabel does not return a solution.
        MissingDependencyError: If Clarabel is not installed.
    """
    loss = _loss(data)
    num_samples, num_outputs = data.targets.shape
    linear = {"coefficients": np.zeros(data.atoms.shape[1] * num_outputs), "lengths": data.weights.numpy(), **loss.linear}
    if data.output_bias:
        linear["bias"] = np.zeros(num_outputs)
    rows = [_fits(data), _lengths(data), *loss.rows]
    found = clarabel_solution(
        sparse.bmat([[loss.quadratic.get((one, two), _zeros(linear, one, two)) for two in linear] for one in linear]),
        np.concatenate(list(linear.values())),
        sparse.bmat([[part.blocks.get(name) for name in linear] for part in rows]),
        np.concatenate([part.limits for part in rows]),
        [cone for part in rows for cone in part.cones],
        accuracy=_ACCURACY,
        feasibility=_ACCURACY,
        seconds=max(seconds, 1e-3),
    )
    if not (found.is_solved and found.is_finite):
        status = "no solution" if found.is_finite else "not finite"
        raise SolverError("The restricted program was not solved.", solver="Clarabel", solver_status=status)
    coefficients = torch.from_numpy(found.point[: len(linear["coefficients"])].reshape(-1, num_outputs))
    multipliers = torch.from_numpy(found.multipliers[: num_samples * num_outputs].reshape(num_samples, num_outputs))
    return ConeProgramSolution(coefficients=data.coefficients_from(coefficients), dual_point=multipliers * data.dual_unit)


def _zeros(linear: Mapping[str, FloatArray], one: str, two: str) -> Any:
    return sparse.csc_matrix((len(linear[one]), len(linear[two])))


def _fits(data: ProgramData) -> _Rows:
    """``F - A V - 1 b' = 0``; matrices are flattened row by row."""
    outputs = data.targets.numel()
    each = sparse.identity(data.targets.shape[1])
    blocks = {"coefficients": sparse.kron(-data.atoms.numpy(), each), "outputs": sparse.identity(outputs)}
    if data.output_bias:
        blocks["bias"] = sparse.kron(-np.ones((len(data.targets), 1)), each)
    return _Rows(blocks=blocks, limits=np.zeros(outputs), cones=[("zero", outputs)])


def _lengths(data: ProgramData) -> _Rows:
    """Lengths at least the norms of the rows of V."""
    number, num_outputs = len(data.weights), data.targets.shape[1]
    if num_outputs == 1:
        return _above("lengths", "coefficients", np.zeros(number))
    places = np.arange(number) * (num_outputs + 1)  # of the lengths, each before its row
    size = len(places) * (num_outputs + 1)
    return _Rows(
        blocks={
            "lengths": _placed(-np.ones(number), places, size),
            "coefficients": _placed(-np.ones(number * num_outputs), np.setdiff1d(np.arange(size), places), size),
        },
        limits=np.zeros(size),
        cones=[("second order", num_outputs + 1)] * number,
    )


def _above(sizes: str, values: str, targets: FloatArray) -> _Rows:
    """``sizes >= |values - targets|``, entry by entry."""
    each = sparse.identity(len(targets))
    return _Rows(
        blocks={sizes: sparse.vstack([-each, -each]), values: sparse.vstack([each, -each])},
        limits=np.concatenate([targets, -targets]),
        cones=[("nonnegative", 2 * len(targets))],
    )


def _placed(values: FloatArray, places: NDArray[np.int64], size: int) -> Any:
    """A matrix with one number a column, at these rows out of ``size``."""
    return sparse.csc_matrix((values, (places, np.arange(len(values)))), shape=(size, len(values)))


def _loss(data: ProgramData) -> _Loss:
    """The loss, in units, without its constants."""
    targets = data.targets.numpy().ravel()
    each = sparse.identity(len(targets), format="csc")
    if data.kind == "squared":
        return _Loss(linear={"outputs": -targets}, quadratic={("outputs", "outputs"): each})
    if data.kind == "absolute":
        sizes = np.ones(len(targets))
        return _Loss(linear={"outputs": 0.0 * targets, "sizes": sizes}, rows=[_above("sizes", "outputs", targets)])
    own = np.zeros(0) if data.last is None else data.last.numpy().ravel()
    if data.kind == "huber":  # half the square of what is left beside outliers, and their absolute values
        kink = np.broadcast_to(own, targets.shape)
        return _Loss(
            linear={"outputs": -targets, "outliers": targets, "sizes": kink},
            rows=[_above("sizes", "outliers", 0.0 * targets)],
            quadratic={
                ("outputs", "outputs"): each,
                ("outputs", "outliers"): -each,
                ("outliers", "outliers"): each,
            },
        )
    return _logarithm(targets, own, has_zero=data.kind == "logistic")


def _logarithm(targets: FloatArray, masses: FloatArray, *, has_zero: bool) -> _Loss:
    """``masses' log(sum of exp) - targets' F`` over the outputs of each sample, or over one output and zero.

    ``tops`` are the logarithms: the exponentials of outputs less their top, ``shares``, add up to one at most.
    """
    number, count = len(masses), len(targets) // len(masses)
    shares = number * (count + has_zero)
    # A cone {(x, 1, z): exp(x) <= z} a share, in three rows; shares of zeros, if any, come last.
    first = 3 * np.arange(shares)
    owners = np.concatenate([np.repeat(np.arange(number), count), np.arange(number if has_zero else 0)])
    exponents = sparse.csc_matrix((np.ones(shares), (first, owners)), shape=(3 * shares, number))
    totals = sparse.csc_matrix((np.ones(shares), (owners, np.arange(shares))), shape=(number, shares))
    cones = _Rows(
        blocks={
            "outputs": _placed(-np.ones(len(targets)), first[: len(targets)], 3 * shares),
            "tops": exponents,
            "shares": _placed(-np.ones(shares), first + 2, 3 * shares),
        },
        limits=np.tile([0.0, 1.0, 0.0], shares),
        cones=[("exponential", 3)] * shares,
    )
    sums = _Rows(blocks={"shares": totals}, limits=np.ones(number), cones=[("nonnegative", number)])
    return _Loss(linear={"outputs": -targets, "tops": masses, "shares": np.zeros(shares)}, rows=[cones, sums])
