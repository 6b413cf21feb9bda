"""Linear bounds of many boxes at once: matrix products with all rows, then elementwise work, on any torch device.

The bounds are those of the compiled searches (``_scalar_kernel``, ``_vector_kernel``) without their quadratic part.
Centre values and ranges are computed afresh for every cell, so that rounding does not grow with the depth (docs/rounding.md).
Shapes: B cells, n rows, rank r, c outputs; everything is float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torch_strongdual.certification.oracles.row_space import UNIT_ROUNDOFF
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem

__all__ = ["BatchedCells", "CellBounds"]

_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CellBounds:
    """What is known about each of B boxes after its evaluation.

    Args:
        excess: (B,), at most ``-slack`` proves the box; ``inf`` where nothing can be said.
        ratio: (B,), value at the centre over the norm of the centre: attained, up to rounding.
        aim: (B, r), where in the box the maximum is expected.
        gain: (B, r), what halving each side is expected to gain.
    """

    excess: Tensor
    ratio: Tensor
    aim: Tensor
    gain: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Ranges:
    """Rows over boxes: each is negative, positive (``over``) or undecided (``open``) in a box; all (B, n)."""

    middle: Tensor
    reach: Tensor
    over: Tensor
    open: Tensor

    def chord(self) -> Tensor:
        """Slope of the line above the ReLU that meets it at both ends; 0 or 1 where the sign is known."""
        slope = (self.middle + self.reach).div_(self.reach.clamp(min=_TINY).mul_(2.0))
        return self._decided(slope)

    def tangent(self) -> Tensor:
        """Slope of a line through the origin below the ReLU, steeper the more of the range is positive."""
        slope = (self.middle / self.reach.clamp(min=_TINY).mul_(1.2)).add_(0.5).clamp_(0.0, 1.0)
        return self._decided(slope)

    def half_gap(self) -> Tensor:
        """Half the height of the strip of slope ``chord`` that holds the ReLU; 0 where the sign is known."""
        gap = (self.reach - self.middle).mul_(self.reach + self.middle).div_(self.reach.clamp(min=_TINY).mul_(4.0))
        return gap.masked_fill_(~self.open, 0.0)

    def _decided(self, slope: Tensor) -> Tensor:
        return slope.masked_fill_(~self.open, 0.0).masked_fill_(self.over, 1.0)


class BatchedCells:
    """A sphere problem on a device, ready to bound ``||w(p)|| - bound * ||p||`` over boxes on the faces of a cube.

    Args:
        problem: Rows without zeros; one-sided if it has one output.
        device: Where to compute.
    """

    def __init__(self, problem: SphereProblem, device: torch.device) -> None:
        def on_device(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64)).to(device)

        self.device = device
        self.rank, self.num_rows, self.num_outputs = problem.rank, problem.num_rows, problem.num_outputs
        self._is_scalar = problem.one_sided
        self._rows, self._duals, self._linear = on_device(problem.rows), on_device(problem.duals), on_device(problem.linear)
        self._sizes = self._rows.abs()
        heavy = np.linalg.norm(problem.duals, axis=1)
        self._heavy = self._sizes * on_device(heavy)[:, None]  # |Lam_i| |x_ik|
        self._weight = float(heavy @ np.abs(problem.rows).sum(axis=1) + np.abs(problem.linear).sum())

    @staticmethod
    def bytes_per_cell(*, rank: int, num_rows: int, num_outputs: int, is_scalar: bool) -> int:
        """Most memory the evaluation of one cell takes."""
        row_arrays = 7 if is_scalar else 11 + 3 * num_outputs
        return 8 * (row_arrays * num_rows + 24 * rank + 4 * rank * num_outputs + 3 * num_outputs**2 + 16)

    @staticmethod
    def bytes_of_data(*, rank: int, num_rows: int, num_outputs: int) -> int:
        """Memory the problem itself takes."""
        return 8 * (num_rows * (5 * rank + 3 * num_outputs + 2) + 2 * rank * num_outputs)

    def slack(self, bound: float) -> float:
        """Bound on all rounding errors in the evaluation of one cell; derived in docs/rounding.md."""
        per_weight = 2 * self.num_rows + 10 * self.rank + 6 * self.num_outputs + 60
        per_bound = (4 * self.rank + 40) * math.sqrt(self.rank)
        return 1.1 * UNIT_ROUNDOFF * (per_weight * self._weight + per_bound * bound)

    def evaluate(self, centre: Tensor, width: Tensor, bound: float) -> CellBounds:
        """Bound the excess of each box.

        Args:
            centre: (B, r), dyadic numbers, one coordinate of each row 1 or -1.
            width: (B, r), half widths, powers of two; zero for that coordinate.
            bound: What to compare with, above zero.
        """
        middle, reach = centre @ self._rows.T, width @ self._sizes.T
        over = middle >= reach
        ranges = _Ranges(middle, reach, over, (middle > -reach).logical_and_(~over))
        return (self._scalar if self._is_scalar else self._vector)(ranges, centre, width, bound)

    def _scalar(self, ranges: _Ranges, centre: Tensor, width: Tensor, bound: float) -> CellBounds:
        lam, linear = self._duals[:, 0], self._linear[:, 0]
        along = centre @ linear
        value = ranges.middle.clamp(min=0.0) @ lam + along
        is_positive = lam > 0.0
        # Above the ReLU where lam > 0, below it where lam < 0: a line through (middle, chord * reach) or the origin.
        slope = torch.where(is_positive, ranges.chord(), ranges.tangent())
        at_centre = slope * torch.where(is_positive & ranges.open, ranges.reach, ranges.middle)
        const = at_centre @ lam + along
        del at_centre
        slope *= lam
        total = slope @ self._rows + linear
        del slope
        excess, aim = largest_over_boxes(const, total, centre, width, bound)
        norm = torch.linalg.vector_norm(centre, dim=1)
        gain = ranges.open.to(centre.dtype) @ self._heavy + 0.5 * (total - bound * centre / norm[:, None]).abs()
        return CellBounds(excess=excess, ratio=value / norm, aim=aim, gain=gain * width)

    def _vector(self, ranges: _Ranges, centre: Tensor, width: Tensor, bound: float) -> CellBounds:
        """Split w along its direction v at the centre: ``s = v'w`` and the rest q; see ``advance_vector``."""
        image = ranges.middle.clamp(min=0.0) @ self._duals + centre @ self._linear
        length = torch.linalg.vector_norm(image, dim=1)
        ahead = torch.where(length[:, None] > 1e-300, image / length.clamp(min=1e-300)[:, None], _first_axis(image))
        top, low, chord = self._majorants(ranges, ahead, centre)
        rest, rest_slope, radius = self._rest(ranges, chord, ahead, centre)
        slack = self.slack(bound)
        straight = (rest.abs() + (rest_slope.abs() * width[:, :, None]).sum(1)).square().sum(1).sqrt()
        farthest = straight + (radius + slack)
        floor = _least_sum(low, farthest, centre, width, bound, slack)
        is_useful = floor > 0.02 * bound
        const = top[0] + farthest.square() / floor.clamp(min=0.02 * bound) * (1.0 + 1e-15)
        excess, aim = largest_over_boxes(const, top[1], centre, width, bound)
        norm = torch.linalg.vector_norm(centre, dim=1)
        gain = ranges.open.to(centre.dtype) @ self._heavy + 0.5 * (top[1] - bound * centre / norm[:, None]).abs()
        gain += torch.linalg.vector_norm(rest_slope, dim=2)
        return CellBounds(
            excess=excess.masked_fill(~is_useful, math.inf),
            ratio=length / norm,
            aim=torch.where(is_useful[:, None], aim, centre),
            gain=gain * width,
        )

    def _majorants(
        self, ranges: _Ranges, ahead: Tensor, centre: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
        """Affine functions above and below ``s``, each by value at the centre (B,) and slope (B, r); and the chords."""
        lam = ahead @ self._duals.T  # (B, n)
        is_positive = lam > 0.0
        chord, tangent = ranges.chord(), ranges.tangent()
        decided = ahead @ self._linear.T  # (B, r)
        along = (centre * decided).sum(1)
        lines = []
        for is_chord in (is_positive, ~is_positive):
            slope = torch.where(is_chord, chord, tangent).mul_(lam)
            at_centre = torch.where(is_chord & ranges.open, ranges.reach, ranges.middle).mul_(slope).sum(1)
            lines.append((at_centre + along, slope @ self._rows + decided))
        return lines[0], lines[1], chord

    def _rest(self, ranges: _Ranges, chord: Tensor, ahead: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Affine part of ``q``, by value at the centre (B, c) and slope (B, r, c), and a bound (B,) on what it misses."""
        half_gap = ranges.half_gap()
        lam = ahead @ self._duals.T
        side = self._duals - lam[:, :, None] * ahead[:, None, :]  # (B, n, c)
        del lam
        straight = self._linear - (self._linear @ ahead.T).T[:, :, None] * ahead[:, None, :]  # (B, r, c)
        at_centre = chord * ranges.middle + half_gap
        rest = torch.bmm(at_centre[:, None, :], side)[:, 0] + torch.bmm(centre[:, None, :], straight)[:, 0]
        del at_centre
        rest_slope = straight + torch.matmul(self._rows.T, side * chord[:, :, None])
        parts = torch.bmm(half_gap[:, None, :], side.abs())[:, 0]  # sum_i b_i |g_ij|
        squared = parts.square().sum(1)
        if self.num_outputs >= 4:
            # ||sum eps_i g_i||^2 <= lmax(sum b_i g_i g_i' / |g_i|) sum b_i |g_i|, and lmax^2 <= ||gram^2||_F
            lengths = torch.linalg.vector_norm(side, dim=2)
            weight = (lengths * half_gap).sum(1)
            gram = torch.bmm(side.transpose(1, 2), side * (half_gap / lengths.clamp(min=_TINY))[:, :, None])
            frobenius = torch.bmm(gram, gram).square().sum((1, 2))
            squared = torch.minimum(squared, frobenius.pow(0.25) * weight)
        return rest, rest_slope, squared.sqrt()


def largest_over_boxes(const: Tensor, slope: Tensor, centre: Tensor, width: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Bound the maximum over each box of ``const + slope'(p - centre) - bound * ||p||`` from above; say where it is.

    The batched form of ``largest_over_box``: for any unit e, ``||p|| >= e'p``, and what remains is linear.
    """
    work, lowest, highest = centre, centre - width, centre + width
    norm = torch.linalg.vector_norm(centre, dim=1, keepdim=True)
    best = torch.full_like(const, math.inf)
    for _ in range(4):
        e = work / norm
        reach = ((slope - bound * e).abs() * width).sum(1)
        best = torch.minimum(best, const - bound * (e * centre).sum(1) + reach)
        work = torch.minimum(torch.maximum(work + norm / bound * (slope - bound * e), lowest), highest)
        norm = torch.linalg.vector_norm(work, dim=1, keepdim=True)
    return best, work


def _least_sum(
    low: tuple[Tensor, Tensor], farthest: Tensor, centre: Tensor, width: Tensor, bound: float, slack: float
) -> Tensor:  # (B,)
    """M of ``advance_vector``: a lower bound of ``bound * ||p|| + s`` wherever ``||w|| > bound * ||p||`` would hold."""
    const, slope = low
    norm = torch.linalg.vector_norm(centre, dim=1, keepdim=True)
    floor = const + bound * norm[:, 0] - ((slope + bound * centre / norm).abs() * width).sum(1)
    nearest = bound * torch.linalg.vector_norm((centre.abs() - width).clamp(min=0.0), dim=1)
    least = const - (slope.abs() * width).sum(1)
    floor = torch.maximum(floor, nearest + least)
    room = (nearest.square() - farthest.square()).clamp(min=0.0).sqrt()
    has_room = (farthest < nearest) & (least - slack >= -room)
    floor = torch.where(has_room, torch.maximum(floor, nearest + room), floor)
    return (floor - slack) * (1.0 - 1e-15)


def _first_axis(image: Tensor) -> Tensor:
    axis = torch.zeros_like(image)
    axis[:, 0] = 1.0
    return axis
