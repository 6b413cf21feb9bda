"""Operator splitting for the relaxed training problem: a dual point that suits the doubly nonnegative relaxation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift
from torch_strongdual.certification.oracles._doubly_nonnegative.sets import ProductCone, SemidefiniteFace, cone_heights

__all__ = ["JointSplitting"]

FloatArray = NDArray[np.float64]

_RELAXATION = 1.6
_BISECTIONS = 40


@dataclass(slots=True, kw_only=True, eq=False)
class _Side:
    """Moments of the branches with positive, or with negative, output weight."""

    moments: Tensor
    prices: Tensor
    relaxed: Tensor


class JointSplitting:
    r"""ADMM for :math:`\min \tfrac12 \|F - y\|^2 + \beta (Y^+_{11} + Y^-_{11})` over moments of any size.

    The outputs are :math:`F_i = \rho_i (Y^+_{1 z_i} - a Y^+_{1 s_i} - Y^-_{1 z_i} + a Y^-_{1 s_i}) + b`, a the negative slope
    and b a bias, zero unless asked for. The multiplier :math:`\lambda` of that equality is a dual point; at the optimum both
    relaxed one-sided maxima of :math:`\lambda` are at most :math:`\beta`, and no such point has a larger dual objective.

    Args:
        rows: Of norm one, shape (n, r).
        norms: :math:`\rho` (n,), of size about one.
        targets: y (n,), of norm about one.
        slope: a, the negative slope.
        path_decay: :math:`\beta`.
        slope_bound: Largest :math:`|\lambda_i|`, for Huber losses.
        has_bias: Whether b is free.
        device: Where the iterations run.
    """

    def __init__(
        self,
        rows: FloatArray,
        norms: FloatArray,
        targets: FloatArray,
        *,
        slope: float,
        path_decay: float,
        slope_bound: float,
        has_bias: bool,
        device: torch.device,
    ) -> None:
        lift = Lift.of(rows, np.zeros(len(rows)), np.zeros(rows.shape[1]))
        self._active, self._inactive, self._first = lift.active, lift.inactive, 1 + lift.rank
        self._face, self._cone = SemidefiniteFace(lift, device=device), ProductCone(lift, is_normalised=False)
        self._norms, self._targets = torch.from_numpy(norms).to(device), torch.from_numpy(targets).to(device)
        self._slope, self.path_decay, self._slope_bound, self._has_bias = slope, path_decay, slope_bound, has_bias
        zero = torch.zeros(lift.length, lift.length, dtype=torch.float64, device=device)
        self._sides = [_Side(moments=zero, prices=zero, relaxed=zero) for _ in range(2)]
        self._bias, self._penalty = 0.0, 0.3
        self._residuals = (0.0, 0.0)
        self.dual_point = self._targets

    def step(self) -> None:
        """One iteration; raises ``torch.linalg.LinAlgError`` where an eigendecomposition fails."""
        disagreement = change = 0.0
        faces, targets = [], []
        for side in self._sides:
            face = self._face.project(side.moments - side.prices / self._penalty)
            side.relaxed = _RELAXATION * face + (1.0 - _RELAXATION) * side.moments
            target = side.relaxed + side.prices / self._penalty
            target[0, 0] -= self.path_decay / self._penalty
            faces.append(face)
            targets.append(target)
        self.dual_point = self._coupled_point(targets)
        for sign, side, face, target in zip((1.0, -1.0), self._sides, faces, targets, strict=True):
            for where, pull in ((self._active, sign), (self._inactive, -sign * self._slope)):
                target[0, where] += pull * self._pull(self.dual_point)
                target[where, 0] = target[0, where]
            moments = self._cone.project(target)
            disagreement += float(torch.linalg.norm(face - moments))
            change += float(torch.linalg.norm(moments - side.moments))
            side.prices = side.prices + self._penalty * (side.relaxed - moments)
            side.moments = moments
        self._residuals = disagreement, change * self._penalty
        if self._has_bias:  # a descent step on the bias: its optimality is the balance of the dual point
            self._bias += float(self.dual_point.mean())

    def balance(self) -> None:
        """Change the penalty where one of the two relative residuals is much larger than the other."""
        primal = self._residuals[0] * sum(float(torch.linalg.norm(side.prices)) for side in self._sides)
        dual = self._residuals[1] * sum(float(torch.linalg.norm(side.moments)) for side in self._sides)
        if primal > 0.0 and dual > 0.0 and not 0.25 <= (ratio := primal / dual) <= 4.0:
            self._penalty *= min(max(ratio**0.5, 0.3), 3.0)

    def _pull(self, dual_point: Tensor) -> Tensor:
        """What a dual point adds to the targets of ``Y_{1 z_i}``."""
        return dual_point * self._norms / (2.0 * self._penalty)

    def _coupled_point(self, targets: list[Tensor]) -> Tensor:
        """The dual point at which the loss and the projections agree: a root for each sample, by bisection."""
        parts = []
        for sign, target in zip((1.0, -1.0), targets, strict=True):
            for where, weight in ((self._active, sign), (self._inactive, -sign * self._slope)):
                norms = torch.linalg.norm(target[1 : self._first, where], dim=0)
                parts.append((weight, target[0, where], norms))

        def excess(dual_point: Tensor) -> Tensor:
            pull = self._pull(dual_point)
            outputs = sum((w * cone_heights(heights + w * pull, norms) for w, heights, norms in parts), start=0.0 * pull)
            return dual_point - self._targets + self._bias + self._norms * outputs

        zero = torch.zeros_like(self._targets)
        opposite = -excess(zero)  # the excess grows at least as fast as the dual point
        low, high = torch.minimum(opposite, zero), torch.maximum(opposite, zero)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            is_high = excess(middle) > 0.0
            low, high = torch.where(is_high, low, middle), torch.where(is_high, middle, high)
        return (0.5 * (low + high)).clamp(-self._slope_bound, self._slope_bound)
