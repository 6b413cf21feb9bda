"""Search for the quartic majorant of least maximum: touching points and Gram matrices, by a smoothed eigenvalue."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles._sandwich.gram import GramSpace
from torch_strongdual.certification.oracles._sandwich.groups import RowGroups
from torch_strongdual.certification.oracles._sandwich.majorant import QuarticMajorant, gram_matrix
from torch_strongdual.certification.oracles._sandwich.problem import UnitRows
from torch_strongdual.certification.oracles._sandwich.quartics import LEAST_TOUCH, Shapes, best_touches, even_quartics

__all__ = ["FoundMajorant", "find_quartic_majorant"]

FloatArray = NDArray[np.float64]

_SHARPNESS = (30.0, 100.0, 300.0, 1000.0, 3000.0)
_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoundMajorant:
    """What the search ended with.

    Args:
        majorant: The best met.
        iterations: Number of eigendecompositions.
    """

    majorant: QuarticMajorant
    iterations: int


def find_quartic_majorant(
    problem: UnitRows,
    anchor: FloatArray,  # shape: (r,)
    *,
    level: float,
    is_enough: Callable[[float], bool],
    deadline: Deadline,
) -> FoundMajorant:
    r"""Minimise the bound :math:`k + 2\lambda_{max}(M)` of :class:`QuarticMajorant`.

    The eigenvalue is smoothed to :math:`\epsilon \log \operatorname{tr} e^{M/\epsilon}`, whose gradient is a matrix of
    moments of u: they tell each row where its quartic should touch, and are to become those of a distribution on the sphere,
    the same for equal monomials. L-BFGS with ever smaller :math:`\epsilon`; of many rows, those that want to touch at similar
    points share one. The best point met is returned: the bound is valid at all of them.

    Args:
        problem: To be majorised.
        anchor: A unit vector with a large value.
        level: About the maximum of ``problem``.
        is_enough: Whether a bound this small answers the request.
        deadline: Return the best majorant so far when it expires.
    """
    descent = _Descent.of(problem, anchor, level=level, is_enough=is_enough, deadline=deadline)
    with np.errstate(all="ignore"):  # nothing here is part of the proof, and what is not finite is not the best
        for sharpness in _SHARPNESS:
            if descent.is_over:
                break
            descent.regroup()
            descent.run(sharpness)
    return FoundMajorant(majorant=descent.majorant(), iterations=descent.steps)


class _OverError(Exception):
    """Leaves the minimiser in the middle of a line search."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Descent:
    """State of the search.

    Args:
        problem: As given.
        space: Of Gram matrices.
        groups: Rows that share a touching point.
        level: Unit of values.
        forms: Touching points, shares and leanings of all rows, (3, n); see :class:`Shapes`.
        matrices: ``A``, N and C of :class:`QuarticMajorant`, flattened and joined.
        moments: P at the last point.
        best: Least bound met, and where.
    """

    problem: UnitRows
    space: GramSpace
    groups: RowGroups
    level: float
    is_enough: Callable[[float], bool]
    deadline: Deadline
    forms: FloatArray
    matrices: FloatArray
    best: float = math.inf
    best_forms: FloatArray
    best_matrices: FloatArray
    moments: FloatArray | None = None
    steps: int = 0

    @classmethod
    def of(
        cls,
        problem: UnitRows,
        anchor: FloatArray,
        *,
        level: float,
        is_enough: Callable[[float], bool],
        deadline: Deadline,
    ) -> _Descent:
        space = GramSpace(len(problem.linear))
        hidden = problem.rows @ anchor
        touches = np.clip(np.sqrt(0.5 * hidden**2 + 0.5 / space.rank), LEAST_TOUCH, 1.0)
        above = problem.weights > 0
        leanings = np.where(above, 0.0, np.clip(hidden * math.sqrt(space.rank), -1.0, 1.0))
        forms = np.stack([touches, np.where(above, 1.0, 0.85), leanings])
        size = space.rank**2 + space.num_products**2 + space.rank * space.num_products
        return cls(
            problem=problem,
            space=space,
            groups=RowGroups.of(space, problem, np.where(above, touches, np.copysign(touches, hidden))),
            level=level,
            is_enough=is_enough,
            deadline=deadline,
            forms=forms,
            matrices=np.zeros(size),
            best_forms=forms,
            best_matrices=np.zeros(size),
        )

    @property
    def is_over(self) -> bool:
        """Whether to stop."""
        return self.deadline.expired or self.is_enough(self.best)

    def regroup(self) -> None:
        """Let rows that want to touch at similar points share one."""
        if self.moments is None or not self.groups.is_tied:
            return
        rank = self.space.rank
        second, fourth = self.groups.row_moments(self.problem, self.moments[rank:, rank:])
        above = self.problem.weights > 0
        touches = best_touches(second, fourth, above)
        self.forms = np.stack([touches, self.forms[1], self.forms[2]])
        hidden = self.problem.rows @ (self.moments[:rank, rank:] @ self.space.identity)
        places = np.where(above, touches, np.copysign(touches, hidden))
        self.groups = RowGroups.of(self.space, self.problem, places)

    def run(self, sharpness: float) -> None:
        """L-BFGS at one sharpness."""
        from scipy.optimize import minimize

        count = self.groups.count
        touches, shares, leanings = (self.groups.means(form) for form in self.forms)
        start = np.concatenate([np.log(touches), shares, leanings, self.matrices])
        bounds = [
            *([(math.log(LEAST_TOUCH), 0.0)] * count),
            *((1.0, 1.0) if above else (0.0, 1.0) for above in self.groups.is_above),
            *((0.0, 0.0) if above else (-1.0, 1.0) for above in self.groups.is_above),
            *([(None, None)] * len(self.matrices)),
        ]
        try:
            found = minimize(
                self._objective,
                start,
                args=(sharpness,),
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options={"maxiter": _STEPS, "maxcor": 20, "ftol": 1e-7},
            )
        except _OverError:
            return
        self.forms = self._spread_forms(found.x)
        self.matrices = np.asarray(found.x[3 * count :], dtype=np.float64)

    def _spread_forms(self, point: FloatArray) -> FloatArray:  # (3, n)
        """Forms of all rows at a point of the search."""
        touches, shares, leanings = point[: 3 * self.groups.count].reshape(3, -1)
        return np.stack([self.groups.spread(form) for form in (np.exp(touches), shares, leanings)])

    def _objective(self, point: FloatArray, sharpness: float) -> tuple[float, FloatArray]:
        """The smoothed bound and its gradient, in units of ``level``."""
        if self.steps and self.is_over:
            raise _OverError
        self.steps += 1
        space, groups, rank = self.space, self.groups, self.space.rank
        logarithms, shares, leanings = point[: 3 * groups.count].reshape(3, -1)
        shift, even, odd = self._split(point[3 * groups.count :])
        values, slopes = even_quartics(np.exp(logarithms), groups.is_above)
        flat, quartic = groups.sums(shares * values[1] / self.level, shares * values[2] / self.level)
        linear = (self.problem.linear + groups.linear((1.0 - shares) * leanings)) / self.level
        matrix = gram_matrix(space, flat - space.flat(shift), shift, quartic + even, linear, odd)
        constant = float((shares * values[0]) @ groups.weights) / self.level
        eigenvalues, vectors = np.linalg.eigh(matrix)
        powers = np.exp(sharpness * (eigenvalues - eigenvalues[-1]))
        total = float(powers.sum())
        self._keep((constant + 2.0 * float(eigenvalues[-1])) * self.level, point)
        kept = powers > 1e-14 * total
        scaled = vectors[:, kept] * np.sqrt(2.0 * powers[kept] / total)
        moments = scaled @ scaled.T
        self.moments = moments
        seconds, fourths = groups.moments(moments[rank:, rank:])
        along = groups.means_along(moments[:rank, rank:] @ space.identity)
        by_touch = shares * (slopes[0] * groups.weights + slopes[1] * seconds + slopes[2] * fourths)
        by_share = values[0] * groups.weights + values[1] * seconds + values[2] * fourths - leanings * along
        by_even = moments[rank:, rank:]
        by_shift = moments[:rank, :rank] - space.square(by_even @ space.identity)
        gradient = np.concatenate(
            [
                np.concatenate([by_touch, by_share, (1.0 - shares) * along]) / self.level,
                by_shift.ravel(),
                (by_even - space.even_values(by_even)).ravel(),
                2.0 * (moments[:rank, rank:] - space.odd_values(moments[:rank, rank:])).ravel(),
            ]
        )
        return constant + 2.0 * (float(eigenvalues[-1]) + math.log(total) / sharpness), gradient

    def _split(self, matrices: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        rank, size = self.space.rank, self.space.num_products
        shift, even, odd = np.split(matrices, [rank**2, rank**2 + size**2])
        return shift.reshape(rank, rank), even.reshape(size, size), odd.reshape(rank, size)

    def _keep(self, bound: float, point: FloatArray) -> None:
        """Remember the best."""
        if bound < self.best:
            self.best = bound
            self.best_forms = self._spread_forms(point)
            self.best_matrices = point[3 * self.groups.count :].copy()

    def majorant(self) -> QuarticMajorant:
        """At the best point, in the units of the problem."""
        shift, even, odd = self._split(self.best_matrices * self.level)
        # L-BFGS keeps to the span of gradients up to rounding: take out what has come in.
        even, odd = even - self.space.even_values(even), odd - self.space.odd_values(odd)
        touches, shares, leanings = self.best_forms
        shapes = Shapes.of(touches, shares, leanings, self.problem.weights > 0)
        return QuarticMajorant(space=self.space, shapes=shapes, shift=0.5 * (shift + shift.T), even=even, odd=odd)
