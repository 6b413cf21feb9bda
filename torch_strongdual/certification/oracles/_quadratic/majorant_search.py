"""Search for the best quadratic majorant of a one-sided sphere problem: a convex problem, solved by a barrier method."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles._quadratic.quadratic_majorant import QuadraticMajorant, secular_root
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem

__all__ = ["find_majorant"]

FloatArray = NDArray[np.float64]

_MAX_FREE = 500  # samples of either sign with parameters of their own; more are tied in groups


def find_majorant(
    problem: SphereProblem,
    anchor: FloatArray,  # shape: (r,)
    *,
    rtol: float,
    is_enough: Callable[[float], bool],
    deadline: Deadline,
) -> QuadraticMajorant:
    r"""Minimise the maximum of the majorant on the sphere over its parameters.

    In the inverse :math:`p_i = 1/\tau_i`, the share :math:`t_i` and the bend :math:`k_i = g_i R_i` the data of the quadratic
    are linear or convex, so that

    .. math:: \Phi(s, p, t, k) = s + \sum \frac{\lambda_i}{4 p_i} + \tfrac14 b'(sI - A)^{-1} b
              - \mu \log\det(sI - A) - \mu \sum \log k_i (t_i - k_i) (1 - t_i - k_i)

    is jointly convex and smooth where :math:`sI \succ A`. Newton's method follows its minimiser as :math:`\mu \to 0`. The
    Hessian costs :math:`O(n^2 r)`. Beyond some hundred samples those of one sign with similar values of
    :math:`x_i'u / \|x_i\|` at ``anchor`` share one parameter, which keeps the cost linear in n.

    Args:
        problem: One-sided.
        anchor: A unit vector with a large value.
        rtol: Relative accuracy at which to stop.
        is_enough: Whether a maximum this small answers the request.
        deadline: Return the best majorant so far when it expires.
    """
    barrier = _Barrier.of(problem, anchor)
    with np.errstate(all="ignore"):  # whatever is not finite is refused, and nothing here is part of the proof
        parameters = _follow_path(barrier, rtol=rtol, is_enough=is_enough, deadline=deadline)
    return barrier.majorant(parameters)


def _follow_path(barrier: _Barrier, *, rtol: float, is_enough: Callable[[float], bool], deadline: Deadline) -> FloatArray:
    """Best parameters met while the barrier vanishes."""
    point = barrier.start()
    best, parameters = math.inf, point.parameters
    centrality = 0.2 * abs(point.value) / barrier.degree
    state = barrier.evaluate(point.parameters, centrality)
    for _ in range(60):
        if state is None or deadline.expired:
            break
        state, decrement = barrier.newton_step(state, centrality)
        if state.value < best:
            best, parameters = state.value, state.parameters
        if is_enough(best) or centrality * barrier.degree <= 0.02 * rtol * abs(best):
            break
        if decrement < 0.5 * centrality * max(1.0, 0.1 * barrier.degree):
            centrality *= 0.2
            state = barrier.evaluate(state.parameters, centrality)
    return parameters


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Evaluation:
    """The barrier function at a point, with the factorisation its derivatives need.

    Args:
        parameters: ``(s, p, t, k)``, one entry a group.
        value: Of the maximum, without the barrier.
        penalised: With it.
        factor: Lower Cholesky factor of ``s I - A``.
        maximiser: ``(s I - A)^{-1} b / 2``.
    """

    parameters: FloatArray
    value: float
    penalised: float
    factor: FloatArray
    maximiser: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Barrier:
    """The problem with rows of norm one, positive duals first, grouped.

    Args:
        problem: As given.
        order: Index of each kept row in ``problem``.
        rows: Of norm one.
        duals: Times the norms of the rows.
        linear: ``G``.
        num_positive: Number of leading rows with positive duals.
        starts: First row of each group.
        num_positive_groups: Number of leading groups with positive duals.
        guess: ``|x_i'u|`` at the anchor.
    """

    problem: SphereProblem
    order: NDArray[np.intp]
    rows: FloatArray
    duals: FloatArray
    linear: FloatArray
    num_positive: int
    starts: NDArray[np.intp]
    num_positive_groups: int
    guess: FloatArray

    @classmethod
    def of(cls, problem: SphereProblem, anchor: FloatArray) -> _Barrier:
        norms = np.linalg.norm(problem.rows, axis=1)
        weighted = problem.duals[:, 0] * norms
        safe = np.where(norms > 0, norms, 1.0)
        images = (problem.rows @ anchor) / safe
        order: list[NDArray[np.intp]] = []
        starts: list[NDArray[np.intp]] = []
        sizes: list[int] = []
        for kept in (weighted > 0, weighted < 0):
            indices = np.flatnonzero(kept)
            indices = indices[np.argsort(images[indices], kind="stable")]
            num_groups = min(len(indices), _group_limit(len(indices), problem.rank))
            edges = np.unique(np.linspace(0, len(indices), num_groups, endpoint=False).astype(np.intp))
            starts.append(edges[: len(indices)] + sum(map(len, order)))
            order.append(indices)
            sizes.append(len(starts[-1]))
        joined = np.concatenate(order)
        return cls(
            problem=problem,
            order=joined,
            rows=problem.rows[joined] / safe[joined, None],
            duals=weighted[joined],
            linear=problem.linear[:, 0],
            num_positive=len(order[0]),
            starts=np.concatenate(starts),
            num_positive_groups=sizes[0],
            guess=np.abs(images[joined]),
        )

    @property
    def is_tied(self) -> bool:
        """Whether some group has several rows."""
        return len(self.starts) < len(self.order)

    @property
    def degree(self) -> float:
        """At the minimiser of the barrier function the value exceeds the least one by at most this times mu."""
        return float(self.rows.shape[1] + 3 * (len(self.starts) - self.num_positive_groups))

    def _per_group(self, per_row: FloatArray) -> FloatArray:
        """Sums over groups."""
        if not self.is_tied or not len(per_row):
            return per_row
        sums: FloatArray = np.add.reduceat(per_row, self.starts, axis=0)
        return sums

    def _per_row(self, per_group: FloatArray) -> FloatArray:
        """One copy a row."""
        if not self.is_tied:
            return per_group
        return np.repeat(per_group, np.diff(np.append(self.starts, len(self.order))))

    def _split(self, parameters: FloatArray) -> tuple[float, FloatArray, FloatArray, FloatArray]:
        """Level, inverse taus, shares and bends."""
        first, rest = self.num_positive_groups, len(self.starts) - self.num_positive_groups
        inverses, shares, bends = np.split(parameters[1:], [first, first + rest])
        return float(parameters[0]), inverses, shares, bends

    def _quadratic(self, parameters: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        """Constant, slope and curvature of the majorant."""
        _, inverses, shares, bends = self._split(parameters)
        groups = np.concatenate([0.25 * inverses, bends])
        slopes = self._per_row(np.concatenate([np.full(len(inverses), 0.5), shares])) * self.duals
        curvatures = self._per_row(groups) * self.duals
        weights = self._per_group(self.duals)[: self.num_positive_groups]
        constant = float(np.sum(0.25 * weights / inverses))
        return constant, self.linear + self.rows.T @ slopes, self.rows.T @ (curvatures[:, None] * self.rows)

    def start(self) -> _Evaluation:
        """A strictly feasible point well inside: curvatures fitted to the anchor."""
        sizes = np.diff(np.append(self.starts, len(self.order)))
        guess = self._per_group(self.guess) / sizes
        inverses = 1.0 / np.maximum(guess[: self.num_positive_groups], 0.3)
        num_rest = len(self.starts) - self.num_positive_groups
        parameters = np.concatenate([[0.0], inverses, np.full(num_rest, 0.5), np.full(num_rest, 0.25)])
        constant, slope, curvature = self._quadratic(parameters)
        level, offset = secular_root(curvature, slope)
        spread = 0.1 * (abs(level) + abs(offset) + constant) + np.finfo(np.float64).tiny
        parameters[0] = max(level, float(np.linalg.eigvalsh(curvature)[-1]) + spread)
        value = parameters[0] + offset + constant
        size = len(self.linear)
        return _Evaluation(
            parameters=parameters, value=value, penalised=math.inf, factor=np.eye(size), maximiser=np.zeros(size)
        )

    def evaluate(self, parameters: FloatArray, centrality: float) -> _Evaluation | None:
        """The barrier function, or ``None`` outside its domain."""
        level, inverses, shares, bends = self._split(parameters)
        inner = np.concatenate([inverses, bends, shares - bends, 1.0 - shares - bends])
        if not (inner > 0).all():
            return None
        constant, slope, curvature = self._quadratic(parameters)
        try:
            factor: FloatArray = np.linalg.cholesky(level * np.eye(len(slope)) - curvature).astype(np.float64, copy=False)
        except np.linalg.LinAlgError:
            return None
        maximiser = 0.5 * _solve_triangular(factor, _solve_triangular(factor, slope), transposed=True)
        value = level + constant + 0.5 * float(slope @ maximiser)
        logarithms = 2.0 * float(np.sum(np.log(np.diagonal(factor)))) + float(np.sum(np.log(inner[len(inverses) :])))
        penalised = value - centrality * logarithms
        if not math.isfinite(penalised):
            return None
        return _Evaluation(parameters=parameters, value=value, penalised=penalised, factor=factor, maximiser=maximiser)

    def newton_step(self, state: _Evaluation, centrality: float) -> tuple[_Evaluation, float]:
        """One damped Newton step; returns the new point and the predicted decrease (0 if no step was found)."""
        gradient, hessian = self._derivatives(state, centrality)
        scale = np.sqrt(np.maximum(np.diagonal(hessian), np.finfo(np.float64).tiny))
        scaled = hessian / np.outer(scale, scale)
        scaled[np.diag_indices(len(scale))] += 1e-13
        try:
            step = -np.linalg.solve(scaled, gradient / scale) / scale
        except np.linalg.LinAlgError:
            return state, 0.0
        decrease = -float(gradient @ step)
        if not decrease > 0.0:
            return state, 0.0
        length = min(1.0, 0.95 * self._longest(state.parameters, step))
        for _ in range(30):
            moved = self.evaluate(state.parameters + length * step, centrality)
            if moved is not None and moved.penalised <= state.penalised - 0.1 * length * decrease:
                return moved, 0.5 * decrease
            length *= 0.5
        return state, 0.0

    def _longest(self, parameters: FloatArray, step: FloatArray) -> float:
        """Largest step length that keeps the parameters in their ranges."""
        _, inverses, shares, bends = self._split(parameters)
        _, d_inverses, d_shares, d_bends = self._split(step)
        inner = np.concatenate([inverses, bends, shares - bends, 1.0 - shares - bends])
        change = np.concatenate([d_inverses, d_bends, d_shares - d_bends, -d_shares - d_bends])
        falling = change < 0
        return float(np.min(inner[falling] / -change[falling], initial=math.inf))

    def _derivatives(self, state: _Evaluation, mu: float) -> tuple[FloatArray, FloatArray]:
        """Gradient and Hessian of the barrier function."""
        _, inverses, shares, bends = self._split(state.parameters)
        first, rest = len(inverses), len(shares)
        rates = np.where(np.arange(len(self.duals)) < self.num_positive, 0.25, 1.0) * self.duals  # da_i / dp or dk
        whitened = _solve_triangular(state.factor, self.rows.T).T  # (n, r): L^{-1} x_i
        inverse = _solve_triangular(state.factor, np.eye(len(self.linear)))
        smoothed = whitened @ inverse  # (n, r): (s I - A)^{-1} x_i
        hidden = self.rows @ state.maximiser
        bent = self._per_group(rates * (hidden**2 + mu * np.sum(whitened**2, axis=1)))
        sheared = self._per_group(self.duals * hidden)
        to_zero, to_left, to_right = mu / bends, mu / (shares - bends), mu / (1.0 - shares - bends)
        weights = self._per_group(self.duals)[:first]
        gradient = np.concatenate(
            [
                [1.0 - state.maximiser @ state.maximiser - mu * float(np.sum(inverse**2))],
                bent[:first] - 0.25 * weights / inverses**2,
                sheared[first:] - to_left + to_right,
                bent[first:] - to_zero + to_left + to_right,
            ]
        )
        # Second order term of b'M^{-1}b/4 along (db, dM): |L^{-1}(db/2 - dM v)|^2 with v the maximiser.
        by_bend = self._per_group((rates * hidden)[:, None] * whitened)
        by_share = self._per_group((0.5 * self.duals)[:, None] * whitened)
        level = -_solve_triangular(state.factor, state.maximiser)
        factors = np.concatenate([level[None], by_bend[:first], by_share[first:], by_bend[first:]])
        hessian = 2.0 * factors @ factors.T
        curved = np.concatenate([np.arange(1, 1 + first), np.arange(1 + first + rest, 1 + first + 2 * rest)])
        hessian[np.ix_(curved, curved)] += mu * self._gram(whitened, rates)
        mixed = mu * self._per_group(rates * np.sum(smoothed**2, axis=1))
        hessian[0, curved] -= mixed
        hessian[curved, 0] -= mixed
        hessian[0, 0] += mu * float(np.sum((inverse.T @ inverse) ** 2))
        self._add_diagonals(hessian, (to_zero**2 / mu, to_left**2 / mu, to_right**2 / mu), 0.5 * weights / inverses**3)
        return gradient, hessian

    def _add_diagonals(self, hessian: FloatArray, walls: tuple[FloatArray, FloatArray, FloatArray], convex: FloatArray) -> None:
        """Second derivatives of what is separable: the constant, and the barrier of shares and bends."""
        first, rest = len(convex), len(walls[0])
        inverses, shares = np.arange(1, 1 + first), np.arange(1 + first, 1 + first + rest)
        bends = shares + rest
        hessian[inverses, inverses] += convex
        hessian[shares, shares] += walls[1] + walls[2]
        hessian[bends, bends] += walls[0] + walls[1] + walls[2]
        hessian[shares, bends] += walls[2] - walls[1]
        hessian[bends, shares] += walls[2] - walls[1]

    def _gram(self, whitened: FloatArray, rates: FloatArray) -> FloatArray:
        """``tr(S A_g S A_h)`` for pairs of groups, ``A_g`` the sum of ``rate_i x_i x_i'``, ``S`` the inverse of ``s I - A``."""
        if not self.is_tied:
            products: FloatArray = (whitened @ whitened.T) ** 2 * np.outer(rates, rates)
            return products
        ends = np.append(self.starts[1:], len(self.order))
        sums = np.stack([(whitened[a:b] * rates[a:b, None]).T @ whitened[a:b] for a, b in zip(self.starts, ends, strict=True)])
        flat = sums.reshape(len(sums), -1)
        return flat @ flat.T

    def majorant(self, parameters: FloatArray) -> QuadraticMajorant:
        """The majorant at ``parameters``, for all rows of the problem."""
        _, inverses, shares, _ = self._split(parameters)
        num_rows = self.problem.num_rows
        all_inverses, all_shares = np.ones(num_rows), np.full(num_rows, 0.5)
        all_inverses[self.order] = self._per_row(np.concatenate([inverses, np.ones(len(shares))]))
        all_shares[self.order] = self._per_row(np.concatenate([np.full(len(inverses), 0.5), shares]))
        return QuadraticMajorant.of(self.problem, all_inverses, all_shares)


def _group_limit(num_rows: int, rank: int) -> int:
    """How many groups rows of one sign are put into: all alone if few, else as many as memory and time allow."""
    return num_rows if num_rows <= _MAX_FREE else max(8, min(200, int(2e7 // max(1, rank * rank))))


def _solve_triangular(factor: FloatArray, right: FloatArray, *, transposed: bool = False) -> FloatArray:
    """Solve with the lower triangular ``factor`` or its transpose."""
    from scipy.linalg import solve_triangular

    solution: FloatArray = solve_triangular(factor, right, lower=True, trans=1 if transposed else 0, check_finite=False)
    return solution
