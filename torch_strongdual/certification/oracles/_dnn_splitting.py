"""Operator splitting for the doubly nonnegative relaxation: finds multipliers, proves nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.oracles._dnn_contraction import Contraction
from torch_strongdual.certification.oracles._dnn_lift import Lift

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

    Y is to lie in two sets, each of them easy to project on. One is the face :math:`\{Q \Gamma Q' : \Gamma \succeq 0\}` of the
    semidefinite cone, Q an orthonormal basis of the range of the lift's E: an eigendecomposition of order 1 + r + \|F\|. The
    other has :math:`Y_{11} = 1`, :math:`\operatorname{tr} Y_{uu} = 1`, nonnegative products of entries of z and s,
    :math:`Y_{z_i s_i} = 0` and :math:`\|Y_{u z_i}\| \le Y_{1 z_i}`, :math:`\|Y_{u s_i}\| \le Y_{1 s_i}`. What the second
    projection adds is a multiplier of these constraints, of the right signs by construction.

    Args:
        lift: With weights and linear part of norm about one, for which the default penalty is tuned.
        device: Where the iterations run, in float64.
        start: Where to begin.

    References:
        Oliveira, Wolkowicz, Xu, "ADMM for the SDP relaxation of the QAP", Math. Prog. Comp. 10, 2018 (the face).
    """

    def __init__(self, lift: Lift, *, device: torch.device, start: SplittingPoint | None = None) -> None:
        self._rank, self._num_rows = lift.rank, lift.num_rows
        basis, triangle = np.linalg.qr(lift.expansion)  # E = QR; its singular values are at least 1
        self._basis = torch.from_numpy(basis).to(device)  # (1 + r + 2 n, 1 + r + |F|)
        self._inverse = torch.from_numpy(np.linalg.inv(triangle)).to(device)
        self._contraction = Contraction(lift, device=device)
        self._objective = torch.from_numpy(lift.objective).to(device)
        if start is None:
            moments = self._project(self._basis @ self._basis.T / self._basis.shape[1])
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
        inner = self._inverse.T @ self._contraction(moments - prices / penalty) @ self._inverse
        values, vectors = torch.linalg.eigh(0.5 * (inner + inner.T))
        positive = values > 0.0
        factor = self._basis @ (vectors[:, positive] * values[positive].sqrt())
        face = factor @ factor.T
        relaxed = _RELAXATION * face + (1.0 - _RELAXATION) * moments
        target = relaxed + (prices + self._objective) / penalty
        projected = self._project(target)
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

    def _project(self, target: Tensor) -> Tensor:
        """Nearest point of the second set."""
        first, number = 1 + self._rank, self._num_rows
        result = target.clone()
        result[first:, first:].clamp_(min=0.0)
        result[first : first + number, first + number :].fill_diagonal_(0.0)
        result[first + number :, first : first + number].fill_diagonal_(0.0)
        heights, vectors = _project_on_cones(target[0, first:], target[1:first, first:])
        result[0, first:], result[first:, 0] = heights, heights
        result[1:first, first:], result[first:, 1:first] = vectors, vectors.T
        result[0, 0] = 1.0
        diagonal = result.diagonal()[1:first]
        diagonal += (1.0 - diagonal.sum()) / self._rank
        return result


def _project_on_cones(heights: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:  # (m,), (r, m)
    """Nearest points with ``||vector|| <= height``, column by column."""
    norms = torch.linalg.norm(vectors, dim=0)
    surface = (0.5 * (heights + norms)).clamp(min=0.0)
    inside = norms <= heights
    shrink = torch.where(inside, torch.ones_like(norms), surface / norms.clamp(min=torch.finfo(norms.dtype).tiny))
    return torch.where(inside, heights, surface), vectors * shrink
