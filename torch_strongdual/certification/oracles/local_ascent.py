"""Local maxima of a sphere problem: lower bounds, witnesses and good first guesses. Never a proof of anything else."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem, distinct_points

__all__ = ["local_maxima"]

FloatArray = NDArray[np.float64]

_MANY_ROWS = 20_000
_GRADIENT_STEPS = 30


def local_maxima(
    problem: SphereProblem,
    starts: FloatArray | None = None,  # shape: (m, rank)
    *,
    num_starts: int = 64,
    num_kept: int = 8,
    num_polished: int = 3,
    seed: int = 0,
    deadline: Deadline | None = None,
) -> FloatArray:  # shape: (at most num_kept, rank)
    r"""Unit vectors with locally large values, best first, without repetitions.

    Normalised gradient steps from many starts at once, then the best are polished by the convex-concave procedure: the
    convex part of :math:`w` is replaced by its tangent, and the rest,
    :math:`\max_{\|u\| \le 1} g'u - \sum_i l_i (x_i'u)_+`, is solved through its dual
    :math:`\min_{0 \le \tau \le l} \|g - X'\tau\|`. Unlike gradient ascent this reaches maxima on concave kinks.

    Args:
        problem: What to maximise.
        starts: Unit vectors to try besides the random ones.
        num_starts: How many starts are drawn (rows of the data and Gaussian directions).
        num_kept: How many results to return at most.
        num_polished: How many of the best are brought to the top of their hills.
        seed: Of the draws.
        deadline: When to return what there is, within one product with the data; ``None`` for no limit.

    Example:
        >>> eye, one = np.eye(2), np.ones((2, 1))
        >>> local_maxima(SphereProblem(rows=eye, duals=one, linear=np.zeros((2, 1)), one_sided=True))[:1].round(3)
        array([[0.707, 0.707]])
    """
    if problem.rank == 0:
        return np.zeros((0, 0))
    points = _unit(np.concatenate([_first_guesses(problem, num_starts, seed), *([] if starts is None else [starts])]))
    deadline = Deadline() if deadline is None else deadline
    points = _gradient_ascent(_thinned(problem, seed), points, deadline)
    points = distinct_points(points, problem.values(points), 2 * num_kept)
    if deadline.remaining == 0.0:
        return points[:num_kept]
    share = min(1.0, _MANY_ROWS / max(problem.num_rows, 1))  # time is bounded: with many rows fewer iterations
    step = _dual_step(problem)
    for _ in range(4):
        points = _convex_concave_step(problem, points, step, max(8, int(120 * share)), deadline)
    points = distinct_points(points, problem.values(points), num_kept)
    # The best few decide how tight a bound looks: bring them to the top.
    best, rest = points[:num_polished], points[num_polished:]
    for _ in range(12):
        if deadline.expired or not len(best):
            break
        climbed = _convex_concave_step(problem, best, step, max(20, int(400 * share)), deadline)
        gained = problem.values(climbed) - problem.values(best)
        best = climbed
        if float(np.max(gained, initial=0.0)) <= 1e-9 * problem.magnitude():
            break
    points = np.concatenate([best, rest])
    return distinct_points(points, problem.values(points), num_kept)


def _thinned(problem: SphereProblem, seed: int) -> SphereProblem:
    """The problem on a sample of its rows if there are many: where it is large, the whole is mostly large, too."""
    if problem.num_rows <= _MANY_ROWS:
        return problem
    rows = np.sort(np.random.default_rng(seed).choice(problem.num_rows, _MANY_ROWS // 4, replace=False))
    scale = problem.num_rows / len(rows)
    return SphereProblem(
        rows=problem.rows[rows], duals=scale * problem.duals[rows], linear=problem.linear, one_sided=problem.one_sided
    )


def _first_guesses(problem: SphereProblem, number: int, seed: int) -> FloatArray:
    """Heavy rows of the data, both signs, and Gaussian directions."""
    generator = np.random.default_rng(seed)
    gaussian = generator.standard_normal((number - number // 2, problem.rank))
    weight = np.linalg.norm(problem.duals, axis=1) * np.linalg.norm(problem.rows, axis=1)
    heavy = problem.rows[np.argsort(-weight, kind="stable")[: number // 4]]
    return np.concatenate([gaussian, heavy, -heavy])


def _unit(points: FloatArray) -> FloatArray:
    """Scale to the unit sphere; zero vectors are dropped."""
    norms = np.linalg.norm(points, axis=1)
    kept = np.isfinite(norms) & (norms > 0)
    scaled: FloatArray = points[kept] / norms[kept, None]
    return scaled


def _directions(problem: SphereProblem, images: FloatArray) -> FloatArray:  # (m, c) -> (m, c)
    """Output directions in which the norm grows: ``w / ||w||``, or 1 if one-sided."""
    if problem.one_sided:
        return np.ones_like(images)
    norms = np.linalg.norm(images, axis=1, keepdims=True)
    scaled: FloatArray = np.divide(images, norms, out=np.full_like(images, images.shape[1] ** -0.5), where=norms > 0)
    return scaled


def _gradient_ascent(problem: SphereProblem, points: FloatArray, deadline: Deadline) -> FloatArray:
    """Normalised gradient steps of shrinking length; keeps the best point of each trajectory."""
    best, best_values = points, problem.values(points)
    for step in range(_GRADIENT_STEPS):
        if deadline.expired:
            break
        hidden = points @ problem.rows.T
        images = points @ problem.linear + np.maximum(hidden, 0.0) @ problem.duals
        directions = _directions(problem, images)
        gradients = directions @ problem.linear.T + ((hidden > 0) * (directions @ problem.duals.T)) @ problem.rows
        norms = np.linalg.norm(gradients, axis=1, keepdims=True)
        move = np.divide(gradients, norms, out=np.zeros_like(gradients), where=norms > 0)
        length = 2.0 * 0.85**step
        stepped = points + length * move
        norms = np.linalg.norm(stepped, axis=1, keepdims=True)
        points = np.divide(stepped, norms, out=points.copy(), where=norms > 0)
        values = problem.values(points)
        better = values > best_values
        best, best_values = np.where(better[:, None], points, best), np.maximum(values, best_values)
    return best


def _dual_step(problem: SphereProblem) -> float:
    """Step size of the dual iteration: one over the largest eigenvalue of ``X'X``, from whichever Gram matrix is smaller."""
    rows = problem.rows
    gram = rows.T @ rows if rows.shape[0] >= rows.shape[1] else rows @ rows.T
    largest = float(np.linalg.eigvalsh(gram)[-1]) if gram.size else 0.0
    return 1.0 / max(largest, np.finfo(np.float64).tiny)


def _convex_concave_step(
    problem: SphereProblem, points: FloatArray, step: float, num_iterations: int, deadline: Deadline
) -> FloatArray:
    """One step of the convex-concave procedure for all points at once; never makes a point worse."""
    if not len(points) or deadline.remaining == 0.0:
        return points
    hidden = points @ problem.rows.T
    directions = _directions(problem, points @ problem.linear + np.maximum(hidden, 0.0) @ problem.duals)
    weights = directions @ problem.duals.T  # (m, n)
    gradient = directions @ problem.linear.T + ((hidden > 0) * np.maximum(weights, 0.0)) @ problem.rows
    limits = np.maximum(-weights, 0.0)
    multipliers = limits * (hidden > 0)
    momentum, speed = multipliers, 1.0
    for _ in range(num_iterations):
        if deadline.expired:
            break
        slack = gradient - momentum @ problem.rows
        moved = np.clip(momentum + step * (slack @ problem.rows.T), 0.0, limits)
        faster = 0.5 * (1.0 + (1.0 + 4.0 * speed * speed) ** 0.5)
        momentum = moved + (speed - 1.0) / faster * (moved - multipliers)
        multipliers, speed = moved, faster
    candidates = gradient - multipliers @ problem.rows
    norms = np.linalg.norm(candidates, axis=1, keepdims=True)
    candidates = np.divide(
        candidates, norms, out=points.copy(), where=norms > 1e-12 * np.linalg.norm(gradient, axis=1, keepdims=True)
    )
    better = problem.values(candidates) > problem.values(points)
    return np.where(better[:, None], candidates, points)
