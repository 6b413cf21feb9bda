"""Dual points of proven dual norm, and what their combinations prove without asking an oracle."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.training_problem import TrainingProblem

__all__ = ["ProvenPoint", "ProvenPoints"]

_CAPACITY = 8
_SWEEPS = 2
_SECTIONS = 24
_UNIT = 2.0**-53
_TINY = 5e-324


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProvenPoint:
    """A dual point with a proven upper bound on its dual norm.

    Args:
        candidate: In the dual domain, balanced if the output has a bias, shape ``(num_samples, out_features)``; of any size.
        dual_norm_upper: Proven, in the product form; finite.
        source: Where it came from, for the certificate.
        oracle: What proved it.
    """

    candidate: Tensor
    dual_norm_upper: float
    source: str
    oracle: str


class ProvenPoints:
    r"""The last few proven points, and the best point of their convex hull.

    The dual norm is a norm: :math:`\kappa(\sum_j w_j \Lambda_j) \le \sum_j w_j U_j` for any :math:`w \ge 0`. Scaled to be
    feasible, the points span a convex set of feasible points, and the dual objective is concave on it. So line
    searches between pairs find a better bound, if there is one, at no cost worth mentioning.

    Example:
        >>> len(ProvenPoints())
        0
    """

    def __init__(self) -> None:
        self._points: list[ProvenPoint] = []

    def __len__(self) -> int:
        """Points kept."""
        return len(self._points)

    def add(self, point: ProvenPoint) -> None:
        """Keep ``point``; one of the same candidate keeps the smaller bound; the oldest of too many leaves."""
        if not math.isfinite(point.dual_norm_upper) or not bool(torch.isfinite(point.candidate).all()):
            return
        for index, known in enumerate(self._points):
            if torch.equal(known.candidate, point.candidate):
                if point.dual_norm_upper < known.dual_norm_upper:
                    self._points[index] = point
                return
        self._points = [*self._points, point][-_CAPACITY:]

    def best_combination(self, problem: TrainingProblem, deadline: Deadline | None = None) -> ProvenPoint | None:
        """The combination of largest dual objective that line searches find; ``None`` if fewer than two points are of use.

        After ``deadline`` no line search begins.
        """
        scales, values = [], []
        for point in self._points:
            largest = problem.dual_norm_limit / max(point.dual_norm_upper, 1e-300)
            scales.append(problem.loss.best_scale(point.candidate, largest))
            values.append(problem.loss.dual_objective(scales[-1] * point.candidate))
        order = sorted((j for j in range(len(values)) if math.isfinite(values[j])), key=lambda j: -values[j])
        if len(order) < 2:
            return None
        shares = dict.fromkeys(order, 0.0)
        shares[order[0]] = 1.0
        current, value = scales[order[0]] * self._points[order[0]].candidate, values[order[0]]
        for _ in range(_SWEEPS):
            for index in order:
                if deadline is not None and deadline.expired:
                    break
                other = scales[index] * self._points[index].candidate
                step, reached = _line_search(problem, current, other)
                if not reached > value:
                    continue
                current, value = (1.0 - step) * current + step * other, reached
                shares = {j: (1.0 - step) * share for j, share in shares.items()}
                shares[index] += step
        parts = [(share * scales[j], self._points[j]) for j, share in shares.items() if share > 0.0]
        return combined(problem, parts) if len(parts) > 1 else None

    def copy(self) -> ProvenPoints:
        """The same points, independent from now on."""
        other = ProvenPoints()
        other._points = list(self._points)
        return other

    def state(self) -> list[dict[str, Any]]:
        """Tensors, numbers and strings."""
        return [
            {"candidate": p.candidate, "dual_norm_upper": p.dual_norm_upper, "source": p.source, "oracle": p.oracle}
            for p in self._points
        ]

    @classmethod
    def from_state(cls, state: Iterable[Mapping[str, Any]]) -> ProvenPoints:
        """What :meth:`state` gave."""
        restored = cls()
        for entry in state:
            restored.add(ProvenPoint(**entry))
        return restored


def combined(problem: TrainingProblem, parts: list[tuple[float, ProvenPoint]]) -> ProvenPoint:
    r"""``sum_j w_j Lam_j`` of parts ``(w_j, Lam_j)``, ``w_j >= 0``, with the dual norm that theirs prove.

    For exactly these floating-point weights, :math:`\kappa(\sum_j w_j \Lambda_j) \le \sum_j w_j U_j`. Every entry of the sum, k
    products and their additions in any order, is off by at most :math:`2 k u \sum_j w_j |\Lambda_j|` and what underflows; row
    i moved by :math:`\delta_i` moves the dual norm by at most :math:`\delta_i` times the norm of unit features there.

    Args:
        problem: Gives the norms of unit features.
        parts: At least one.
    """
    total = torch.zeros_like(parts[0][1].candidate)
    sizes = torch.zeros_like(total)
    upper = 0.0
    for weight, point in parts:
        total = total + weight * point.candidate
        sizes = sizes + weight * point.candidate.abs()
        upper += weight * point.dual_norm_upper
    count = 4 * (len(parts) + 2)
    errors = torch.linalg.vector_norm(count * _UNIT * sizes + count * _TINY, dim=1)
    upper += float(errors @ problem.feature_norms()) * (1.0 + 4 * (sizes.numel() + 8) * _UNIT)
    names = dict.fromkeys(point.source for _, point in parts)
    return ProvenPoint(
        candidate=total,
        dual_norm_upper=upper * (1.0 + 4 * count * _UNIT),
        source="combination of " + ", ".join(name for name in names),
        oracle=" and ".join(dict.fromkeys(point.oracle for _, point in parts)),
    )


def _line_search(problem: TrainingProblem, start: Tensor, end: Tensor) -> tuple[float, float]:
    """Step in [0, 1] from ``start`` to ``end`` with the largest dual objective (concave), by golden section; and its value."""

    def value(step: float) -> float:
        return problem.loss.dual_objective((1.0 - step) * start + step * end)

    ratio = 0.5 * (math.sqrt(5.0) - 1.0)
    low, high = 0.0, 1.0
    left, right = 1.0 - ratio, ratio
    at_left, at_right = value(left), value(right)
    for _ in range(_SECTIONS):
        if at_left >= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = value(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = value(right)
    return (left, at_left) if at_left >= at_right else (right, at_right)
