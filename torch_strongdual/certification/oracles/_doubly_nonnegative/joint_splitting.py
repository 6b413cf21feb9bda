"""Operator splitting for the relaxed training problem: a dual point that suits the doubly nonnegative relaxation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift
from torch_strongdual.certification.oracles._doubly_nonnegative.sets import ProductCone, SemidefiniteFace, cone_heights

__all__ = ["JointLeaf", "JointSplitting"]

FloatArray = NDArray[np.float64]
SignArray = NDArray[np.int8]

_RELAXATION = 1.6
_BISECTIONS = 40


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JointLeaf:
    """A part of the sphere for the branches of one sign, with what is needed for a bound on it.

    Args:
        sign: Of the output weights: 1 or -1.
        signs: Samples whose sign is decided there, as in :class:`Lift`, shape (n,).
        multipliers: Of the relaxation there, in the units of the splitting, shape (1 + r + 2 n, 1 + r + 2 n).
    """

    sign: float
    signs: SignArray
    multipliers: FloatArray


@dataclass(slots=True, kw_only=True, eq=False)
class _Part:
    """Moments of the branches of one sign in one part of the sphere."""

    sign: float
    lift: Lift
    face: SemidefiniteFace
    moments: Tensor
    offsets: Tensor  # prices over the penalty
    face_moments: Tensor
    before: Tensor
    push: Tensor  # what the objective added to the first row last time


class JointSplitting:
    r"""ADMM for :math:`\min \tfrac12 \|F - y\|^2 + \beta \sum_p Y^p_{11}` over moments of any size, two or more parts p.

    The outputs are :math:`F_i = \rho_i \sum_p \sigma_p (Y^p_{1 z_i} - a Y^p_{1 s_i}) + b`, a the negative slope, b a bias,
    zero unless asked for, and :math:`\sigma_p` the sign of the part. The multiplier :math:`\lambda` of that equality is a dual
    point; at the optimum the relaxed maxima of :math:`\sigma_p \lambda` are at most :math:`\beta` on each part, and no such
    point has a larger dual objective. There is one part for each sign to begin with; :meth:`split` halves some of them at the
    sign of a sample, which tightens the relaxation where the trained network has its branches.

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
        self._cone, self._device = ProductCone(lift, is_normalised=False), device
        self._norms, self._targets = torch.from_numpy(norms).to(device), torch.from_numpy(targets).to(device)
        self._slope, self.path_decay, self._slope_bound, self._has_bias = slope, path_decay, slope_bound, has_bias
        zero = torch.zeros(lift.length, lift.length, dtype=torch.float64, device=device)
        self._parts = [self._part(sign, lift, zero, zero, zero[0]) for sign in (1.0, -1.0)]
        self._bias, self._penalty = 0.0, 0.3
        self.dual_point = self._targets

    @property
    def num_parts(self) -> int:
        """How many parts there are, both signs together."""
        return len(self._parts)

    @property
    def length(self) -> int:
        """Order of the moments of a part."""
        return len(self._parts[0].moments)

    @property
    def weights(self) -> FloatArray:
        """Weights of the samples in the relaxation of the positive sign: the dual point times the norms, shape (n,)."""
        result: FloatArray = (self.dual_point * self._norms).cpu().numpy()
        return result

    @property
    def leaves(self) -> list[JointLeaf]:
        """All parts: for each sign they cover the sphere."""
        leaves = []
        for part in self._parts:
            multipliers = -self._penalty * part.offsets
            multipliers[0] -= self._penalty * part.push
            multipliers[1:, 0] -= self._penalty * part.push[1:]
            leaves.append(JointLeaf(sign=part.sign, signs=part.lift.signs, multipliers=multipliers.cpu().numpy()))
        return leaves

    def step(self) -> None:
        """One iteration; raises ``torch.linalg.LinAlgError`` where an eigendecomposition fails."""
        targets = []
        for part in self._parts:
            part.face_moments = part.face.project(part.moments - part.offsets)
            targets.append(torch.lerp(part.moments, part.face_moments, _RELAXATION).add_(part.offsets))
            targets[-1][0, 0] -= self.path_decay / self._penalty
        self.dual_point = self._coupled_point(targets)
        for part, target in zip(self._parts, targets, strict=True):
            part.push = self._push(part.sign, self.dual_point)
            _add_to_border(target, part.push[1:])
            part.before, part.moments = part.moments, self._cone.project(target)
            part.offsets = target.sub_(part.moments)
            part.offsets[0, 0] -= part.push[0]
            _add_to_border(part.offsets, -part.push[1:])
        if self._has_bias:  # a descent step on the bias: its optimality is the balance of the dual point
            self._bias += float(self.dual_point.mean())

    def balance(self) -> None:
        """Change the penalty where one of the two relative residuals is much larger than the other."""
        primal = sum(float(torch.linalg.norm(part.face_moments - part.moments)) for part in self._parts)
        primal *= sum(float(torch.linalg.norm(part.offsets)) for part in self._parts)
        dual = sum(float(torch.linalg.norm(part.moments - part.before)) for part in self._parts)
        dual *= sum(float(torch.linalg.norm(part.moments)) for part in self._parts)
        if primal > 0.0 and dual > 0.0 and not 0.25 <= (ratio := primal / dual) <= 4.0:
            self.scale_penalty(min(max(ratio**0.5, 0.3), 3.0))

    def scale_penalty(self, factor: float) -> None:
        """Multiply the penalty: smaller ones keep the multipliers closer to what proves bounds."""
        self._penalty *= factor
        for part in self._parts:
            part.offsets = part.offsets / factor
            part.push = part.push / factor

    def split(self, number: int) -> None:
        """Halve so many parts at the sign of a sample: those where that matters most."""
        choices = sorted(((*self._widest_sample(part), k) for k, part in enumerate(self._parts)), reverse=True)
        chosen = {k: sample for score, sample, k in choices[:number] if score > 0.0}
        parts = []
        for k, part in enumerate(self._parts):
            if k not in chosen:
                parts.append(part)
                continue
            for sign in (1, -1):
                lift = part.lift.with_sign(chosen[k], sign)
                parts.append(self._part(part.sign, lift, 0.5 * part.moments, part.offsets, part.push))
        self._parts = parts

    def _part(self, sign: float, lift: Lift, moments: Tensor, offsets: Tensor, push: Tensor) -> _Part:
        face = SemidefiniteFace(lift, device=self._device)
        return _Part(
            sign=sign, lift=lift, face=face, moments=moments, offsets=offsets, face_moments=moments, before=moments, push=push
        )

    def _widest_sample(self, part: _Part) -> tuple[float, int]:
        """The undecided sample that is on as much as off, weighted by its dual; and by how much."""
        moments = part.moments[0]
        scores = (self.dual_point * self._norms).abs() * torch.minimum(moments[self._active], moments[self._inactive])
        scores[torch.from_numpy(part.lift.signs != 0).to(self._device)] = -1.0
        sample = int(scores.argmax())
        return float(scores[sample]), sample

    def _push(self, sign: float, dual_point: Tensor) -> Tensor:
        """What the objective adds to the first row of the targets."""
        pull = sign * self._pull(dual_point)
        corner = pull.new_tensor([-self.path_decay / self._penalty])
        return torch.cat([corner, pull.new_zeros(self._first - 1), pull, -self._slope * pull])

    def _pull(self, dual_point: Tensor) -> Tensor:
        """What a dual point adds to the targets of ``Y_{1 z_i}``."""
        return dual_point * self._norms / (2.0 * self._penalty)

    def _coupled_point(self, targets: list[Tensor]) -> Tensor:
        """The dual point at which the loss and the projections agree: a root for each sample, by bisection."""
        signs = self._targets.new_tensor([part.sign for part in self._parts])[:, None]
        groups = [(self._active, signs)] + ([(self._inactive, -self._slope * signs)] if self._slope else [])
        borders = []
        for where, weights in groups:
            heights = torch.stack([target[0, where] for target in targets])
            norms = torch.stack([torch.linalg.norm(target[1 : self._first, where], dim=0) for target in targets])
            borders.append((weights, heights, norms))

        def excess(dual_point: Tensor) -> Tensor:
            pull = self._pull(dual_point)
            moved = ((w * cone_heights(heights + w * pull, norms)).sum(0) for w, heights, norms in borders)
            outputs = sum(moved, start=0.0 * pull)
            return dual_point - self._targets + self._bias + self._norms * outputs

        zero = torch.zeros_like(self._targets)
        opposite = -excess(zero)  # the excess grows at least as fast as the dual point
        low, high = torch.minimum(opposite, zero), torch.maximum(opposite, zero)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            is_high = excess(middle) > 0.0
            low, high = torch.where(is_high, low, middle), torch.where(is_high, middle, high)
        return (0.5 * (low + high)).clamp(-self._slope_bound, self._slope_bound)


def _add_to_border(matrix: Tensor, border: Tensor) -> None:
    """Add to the first row and the first column, but not where they meet."""
    matrix[0, 1:] += border
    matrix[1:, 0] += border
