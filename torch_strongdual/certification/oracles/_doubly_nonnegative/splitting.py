"""Operator splitting for the doubly nonnegative relaxation: finds multipliers, proves nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift
from torch_strongdual.certification.oracles._doubly_nonnegative.sets import ProductCone, SemidefiniteFace

__all__ = ["Splitting", "SplittingPoint"]

FloatArray = NDArray[np.float64]

_RELAXATION = 1.6  # of the alternating projections; 1 is plain, below 2 converges


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SplittingPoint:
    """Where a splitting stands: a start for another one of the same samples with other signs decided.

    Args:
        moments: Y, the approximate ``E[e e']``, shape (1 + r + 2 n, 1 + r + 2 n).
        prices: Multiplier of the agreement of the two copies of Y, same shape.
        penalty: Weight of their disagreement.
    """

    moments: Tensor
    prices: Tensor
    penalty: float


class Splitting:
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
            moments = self._cone.project(self._face.centre())
            start = SplittingPoint(moments=moments, prices=-self._objective, penalty=0.2)
        self._point = start
        self._residual = torch.zeros_like(start.moments)
        self._disagreement, self._change = 0.0, 0.0
        self.iterations = 0

    @property
    def point(self) -> SplittingPoint:
        """Where it stands."""
        return self._point

    @property
    def multipliers(self) -> FloatArray:
        """Symmetric S, approximately optimal, shape (1 + r + 2 n, 1 + r + 2 n)."""
        result: FloatArray = self._residual.cpu().numpy()
        return result

    @property
    def means(self) -> FloatArray:
        """Approximate ``E[e]``: for good multipliers a hint where the maximum is."""
        result: FloatArray = self._point.moments[0].cpu().numpy()
        return result

    def step(self) -> None:
        """One iteration; raises ``torch.linalg.LinAlgError`` where the eigendecomposition fails."""
        moments, prices, penalty = self._point.moments, self._point.prices, self._point.penalty
        face = self._face.project(moments - prices / penalty)
        relaxed = _RELAXATION * face + (1.0 - _RELAXATION) * moments
        target = relaxed + (prices + self._objective) / penalty
        projected = self._cone.project(target)
        self._residual = penalty * (projected - target)
        self._point = SplittingPoint(moments=projected, prices=prices + penalty * (relaxed - projected), penalty=penalty)
        self._disagreement = float(torch.linalg.norm(face - projected))
        self._change = float(torch.linalg.norm(projected - moments)) * penalty
        self.iterations += 1

    def balance(self) -> None:
        """Change the penalty where one of the two relative residuals is much larger than the other."""
        moments, prices = self._point.moments, self._point.prices
        primal = self._disagreement * float(torch.linalg.norm(prices))
        dual = self._change * float(torch.linalg.norm(moments))
        if not (primal > 0.0 and dual > 0.0):
            return
        ratio = min(max((primal / dual) ** 0.5, 0.3), 3.0)
        if not 0.5 <= ratio <= 2.0:
            self._point = SplittingPoint(moments=moments, prices=prices, penalty=self._point.penalty * ratio)
