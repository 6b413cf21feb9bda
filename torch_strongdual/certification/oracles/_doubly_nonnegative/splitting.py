"""Operator splitting for the doubly nonnegative relaxation: finds multipliers, proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.oracles._doubly_nonnegative.abstract_ascent import AbstractAscent, AbstractAscentPoint
from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift
from torch_strongdual.certification.oracles._doubly_nonnegative.safe_bound import safe_upper
from torch_strongdual.certification.oracles._doubly_nonnegative.sets import ProductCone, SemidefiniteFace

__all__ = ["Splitting", "SplittingPoint"]

FloatArray = NDArray[np.float64]

_ITERATIONS = 20  # in a round
_PATIENCE = 6.0  # rounds it gets to reach the goal at its present speed, before the part is split
_FINAL_PATIENCE = 300.0  # the same, where splitting is not possible
_RELAXATION = 1.6  # of the alternating projections; 1 is plain, below 2 converges


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SplittingPoint(AbstractAscentPoint):
    """Where a splitting stands.

    Args:
        moments: Y, the approximate ``E[e e']``, shape (1 + r + 2 n, 1 + r + 2 n).
        prices: Multiplier of the agreement of the two copies of Y, same shape.
        penalty: Weight of their disagreement.
    """

    moments: Tensor
    prices: Tensor
    penalty: float

    def ascent(self, lift: Lift) -> Splitting:
        """See :meth:`AbstractAscentPoint.ascent`: on the device of the moments."""
        return Splitting(lift, device=self.moments.device, start=self)


class Splitting(AbstractAscent):
    r"""Alternating direction method of multipliers for :math:`\max \langle C, Y \rangle` over the moments :math:`Y = E[e e']`.

    Y is to lie in two sets, each of them easy to project on: a :class:`SemidefiniteFace` and a :class:`ProductCone`. What the
    second projection adds is a multiplier of its constraints, of the right signs by construction.

    Args:
        lift: With weights and linear part of norm about one, for which the default penalty is tuned.
        device: Where the iterations run, in float64.
        start: Where to begin.
    """

    def __init__(self, lift: Lift, *, device: torch.device, start: SplittingPoint | None = None) -> None:
        self._face, self._cone = SemidefiniteFace(lift, device=device), ProductCone(lift)
        self._objective = torch.from_numpy(lift.objective).to(device)
        if start is None:
            start = SplittingPoint(moments=self._cone.project(self._face.centre()), prices=-self._objective, penalty=0.2)
        self._penalty = start.penalty
        self._moments, self._offsets = start.moments, start.prices / start.penalty
        self._before, self._face_moments = start.moments, start.moments
        self._lift, self._uppers = lift, list[float]()
        self.iterations = 0

    @property
    def point(self) -> SplittingPoint:
        """Where it stands."""
        return SplittingPoint(moments=self._moments, prices=self._penalty * self._offsets, penalty=self._penalty)

    def advance(self, is_over: Callable[[], bool]) -> bool:
        """See :meth:`AbstractAscent.advance`."""
        if self.iterations:
            self.balance()
        before = self.iterations
        try:
            while self.iterations < before + _ITERATIONS and not is_over():
                self.step()
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return False
        return self.iterations > before

    def upper(self) -> float:
        """See :meth:`AbstractAscent.upper`."""
        return safe_upper(self._lift, self.multipliers)

    def is_settled(self, upper: float, goal: float, *, is_final: bool) -> bool:
        """See :meth:`AbstractAscent.is_settled`: by the speed of the last rounds."""
        self._uppers.append(upper)
        window, patience = (5, _FINAL_PATIENCE) if is_final else (2, _PATIENCE)
        if len(self._uppers) <= window:
            return False
        pace = (self._uppers[-1 - window] - upper) / window
        return upper - goal > patience * pace

    @property
    def multipliers(self) -> FloatArray:
        """Symmetric S, approximately optimal, shape (1 + r + 2 n, 1 + r + 2 n)."""
        result: FloatArray = (-self._penalty * self._offsets - self._objective).cpu().numpy()
        return result

    @property
    def means(self) -> FloatArray:
        """Approximate ``E[e]``: for good multipliers a hint where the maximum is."""
        result: FloatArray = self._moments[0].cpu().numpy()
        return result

    def step(self) -> None:
        """One iteration; raises ``torch.linalg.LinAlgError`` where the eigendecomposition fails."""
        face = self._face.project(self._moments - self._offsets)
        target = torch.lerp(self._moments, face, _RELAXATION).add_(self._offsets)
        push = self._objective[0] / self._penalty  # the objective lives in the first row and column
        target[0] += push
        target[:, 0] += push
        projected = self._cone.project(target)
        self._offsets = target.sub_(projected)
        self._offsets[0] -= push
        self._offsets[:, 0] -= push
        self._before, self._face_moments, self._moments = self._moments, face, projected
        self.iterations += 1

    def balance(self) -> None:
        """Change the penalty where one of the two relative residuals is much larger than the other."""
        disagreement = float(torch.linalg.norm(self._face_moments - self._moments))
        change = float(torch.linalg.norm(self._moments - self._before)) * self._penalty
        primal = disagreement * float(torch.linalg.norm(self._offsets)) * self._penalty
        dual = change * float(torch.linalg.norm(self._moments))
        if not (primal > 0.0 and dual > 0.0):
            return
        ratio = min(max((primal / dual) ** 0.5, 0.3), 3.0)
        if not 0.5 <= ratio <= 2.0:
            self._offsets /= ratio
            self._penalty *= ratio
