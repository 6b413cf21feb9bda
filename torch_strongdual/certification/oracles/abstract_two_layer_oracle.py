"""What all oracles for two-layer branches share: reduction to a sphere problem and the way back."""

from __future__ import annotations

import dataclasses
import math
import time
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.dual_norm_bound import DualNormBound, Witness
from torch_strongdual.certification.oracles._reduced_state import ReducedState
from torch_strongdual.certification.oracles.abstract_oracle import AbstractDualNormOracle, BoundRequest, common_refusal
from torch_strongdual.certification.oracles.local_ascent import local_maxima
from torch_strongdual.certification.oracles.rank_one_branch import rank_one_branch
from torch_strongdual.certification.oracles.row_space import (
    UNIT_ROUNDOFF,
    RowSpace,
    divided_by_units,
    in_units,
    power_of_two_scale,
)
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem
from torch_strongdual.errors import UnsupportedModelError
from torch_strongdual.nn.branch_spec import BranchSpec

__all__ = ["AbstractTwoLayerOracle", "two_sided_bound"]

FloatArray = NDArray[np.float64]

_ASCENT = 0.3  # of the time, at most, goes into local maxima


class AbstractTwoLayerOracle(AbstractDualNormOracle):
    r"""Base of the oracles for branches with one activation: ReLU or leaky ReLU, L = 2 (further linear layers are harmless).

    A subclass gives :meth:`maximise`, which bounds a :class:`SphereProblem`. Layers next to each other without an activation
    between them are one layer here: their product has at most the product of their norms, so the upper bound
    stays valid, and a branch of rank one attains the maximum.
    """

    @abstractmethod
    def maximise(self, problem: SphereProblem, request: BoundRequest, starts: FloatArray) -> SphereBound:
        """Bound the maximum of ``problem``.

        Args:
            problem: In reduced coordinates, entries of moderate size; one-sided if it has one output, unless
                :meth:`needs_ascent` declines that.
            request: When to stop, in the units of ``problem``.
            starts: Local maxima found beforehand, unit vectors, best first, shape (m, r).
        """

    def needs_ascent(self, problem: SphereProblem) -> bool:
        """Whether local maxima are to be found first, and one output split into two one-sided problems."""
        return True

    def limits(self, rank: int, num_rows: int, num_outputs: int) -> str | None:
        """Return ``None`` if problems of this size can be bounded, else a sentence why not."""
        return None

    def supports(self, spec: BranchSpec) -> str | None:
        """One ReLU or leaky ReLU among any number of linear layers, without hidden biases."""
        if (reason := common_refusal(self, spec)) is not None:
            return reason
        if spec.is_gated:
            return "gated branches need GatedOracle"
        bends = sum(not a.is_identity for a in spec.activations)
        if bends != 1:
            return f"{type(self).__name__} is for branches with one activation; this one has {bends}: {spec}"
        return None

    def init(self, spec: BranchSpec, inputs: Tensor) -> ReducedState:
        """Reduce the inputs to their row space."""
        if (reason := self.supports(spec)) is not None:
            raise UnsupportedModelError(reason)
        return ReducedState.of(spec, inputs)

    def bound(self, state: ReducedState, dual_point: Tensor, request: BoundRequest) -> DualNormBound:
        """Bound the dual norm; see :meth:`AbstractDualNormOracle.bound`."""
        begin = time.perf_counter()
        duals = dual_point.detach().cpu().numpy().astype(np.float64)
        if (known := state.answer_at_once(duals, type(self).__name__)) is not None:
            return known
        dual_scale = power_of_two_scale(duals)
        outputs = RowSpace.of(duals / dual_scale)
        inner = self._reduced_bound(state, outputs, _rescaled(request, state.scale, dual_scale))
        slope = next(a.negative_slope for a in state.spec.activations if not a.is_identity)
        steepness = max(1.0, abs(slope))
        # ||Lam' s(X u)|| <= ||V|| ||(Lam V)' s(B V'u)|| + what the two reductions lose.
        lost = state.row_space.loss_of_reduction(steepness * np.linalg.norm(duals / dual_scale, axis=1))
        lost += outputs.remainder * steepness * float(np.linalg.norm(state.matrix)) * (1.0 + 1e-9)
        upper = (inner.upper * state.row_space.basis_norm * outputs.basis_norm + lost) * (1.0 + 16 * UNIT_ROUNDOFF)
        witnesses = self._witnesses(state, duals, inner.points, slope)
        if len(inner.points):
            state.starts = inner.points[:32]
        stats = {"oracle": type(self).__name__, "rank": float(state.row_space.rank), **inner.stats}
        stats["seconds"] = time.perf_counter() - begin
        return DualNormBound(
            upper=in_units(upper, state.scale, dual_scale, round_up=True),
            lower=witnesses[0].value if witnesses else 0.0,
            witnesses=witnesses,
            stats=stats,
        )

    def _reduced_bound(self, state: ReducedState, outputs: RowSpace, request: BoundRequest) -> SphereBound:
        """Bound the problem in reduced coordinates of inputs and outputs."""
        rows, duals = state.row_space.rows, outputs.rows
        slope = next(a.negative_slope for a in state.spec.activations if not a.is_identity)
        problem = SphereProblem(rows=rows, duals=(1.0 - slope) * duals, linear=slope * (rows.T @ duals))
        if (reason := self.limits(problem.rank, problem.num_rows, problem.num_outputs)) is not None:
            return SphereBound.nothing(problem, reason)
        found = two_sided_bound(self, problem, request, state.known_starts)
        # Rounding of the products that made the problem: (1 - a) Lam and a X'Lam.
        size = float(np.linalg.norm(duals, axis=1) @ np.linalg.norm(rows, axis=1))
        rounding = 4.0 * (rows.shape[0] + 8) * UNIT_ROUNDOFF * (1.0 + abs(slope)) * size if slope else 0.0
        return SphereBound(upper=found.upper + rounding, lower=found.lower, points=found.points, stats=found.stats)

    def _witnesses(self, state: ReducedState, duals: FloatArray, points: FloatArray, slope: float) -> tuple[Witness, ...]:
        """Turn unit vectors in reduced coordinates into explicit branches, valued on the original data."""
        first = points @ state.row_space.basis.T  # (m, d)
        norms = np.linalg.norm(first, axis=1)
        first = first[norms > 0] / norms[norms > 0, None]
        hidden = state.matrix @ first.T  # (n, m)
        dual_scale = power_of_two_scale(duals)
        images = (np.maximum(hidden, 0.0) + slope * np.minimum(hidden, 0.0)).T @ (duals / dual_scale)  # (m, c)
        lengths = np.linalg.norm(images, axis=1)
        values = [in_units(float(length), state.scale, dual_scale) for length in lengths]
        order = [int(j) for j in np.argsort(-lengths, kind="stable") if 0 < values[j] < math.inf]
        return tuple(
            Witness(weights=rank_one_branch(state.spec, first[j], images[j] / lengths[j]), value=values[j]) for j in order
        )


#: Share of the time left that is for the side with the larger value, while the other is not yet known: mostly it is the harder
#: one, but where both attain as much, as at an optimum with branches of both signs, both are as hard.
_LARGER_SIDE, _EQUAL_SIDE, _ALIKE = 0.75, 0.55, 0.97
_MAX_TURNS = 8


def two_sided_bound(
    oracle: AbstractTwoLayerOracle, problem: SphereProblem, request: BoundRequest, starts: FloatArray
) -> SphereBound:
    """Bound ``||w||``; for one output as the larger of the one-sided maxima of ``w`` and ``-w``.

    Local ascent on both sides comes first: neither side then has to prove more than the larger one needs.
    """
    if not oracle.needs_ascent(problem):
        return oracle.maximise(problem, request, starts)
    if problem.one_sided or problem.num_outputs > 1:
        return oracle.maximise(problem, request, local_maxima(problem, starts, deadline=request.deadline.fraction(_ASCENT)))
    sides = [_Side.of(problem.half(sign), request, starts) for sign in (1.0, -1.0)]
    first, second = sorted(sides, key=lambda side: -side.attained)
    lower = first.attained
    share = _EQUAL_SIDE if second.attained > _ALIKE * first.attained else _LARGER_SIDE
    answers: list[SphereBound] = []
    is_moving = True
    # The larger side first, but not with all the time; then the other, to no more than that, and so on while it helps.
    for turn in range(_MAX_TURNS):
        side, other = (first, second) if turn % 2 == 0 else (second, first)
        floor = max(request.floor, (1.0 + request.rtol) * lower)
        upper = max(first.upper, second.upper)
        if turn >= 2 and (request.is_met(upper, lower) or request.deadline.expired or not is_moving):
            break
        enough = floor if side is first else max(floor, other.upper)
        if turn >= 2 and side.upper <= enough:
            continue
        deadline = request.deadline.fraction(share) if side is first and other.upper > floor else request.deadline
        asked = dataclasses.replace(request, floor=enough, known_upper=side.upper, deadline=deadline)
        found = oracle.maximise(side.problem, asked, side.points)
        is_moving = side is second or found.upper < side.upper
        side.learn(found)
        answers.append(found)
        lower = max(lower, found.lower)
    points = np.concatenate([side.latest.points for side in (first, second) if side.latest is not None])
    values = np.abs(problem.images(points)[:, 0])
    return SphereBound(
        upper=max(first.upper, second.upper),
        lower=float(np.max(values, initial=0.0)),
        points=points[np.argsort(-values, kind="stable")],
        stats=_summed(answers) | _source(max((first, second), key=lambda side: side.upper).tightest),
    )


@dataclass(slots=True, kw_only=True, eq=False)
class _Side:
    """One sign of one output, and what is known of it.

    Args:
        problem: One-sided.
        points: Its local maxima.
        attained: The largest of their values.
        upper: The smallest bound proven.
        latest: The last answer.
        tightest: The one that lowered the bound last; the first one if none did.
    """

    problem: SphereProblem
    points: FloatArray
    attained: float
    upper: float
    latest: SphereBound | None = None
    tightest: SphereBound | None = None

    @classmethod
    def of(cls, problem: SphereProblem, request: BoundRequest, starts: FloatArray) -> _Side:
        """Look for local maxima, in half of the time there is for that."""
        points = local_maxima(problem, starts, deadline=request.deadline.fraction(0.5 * _ASCENT))
        attained = float(np.max(problem.values(points), initial=0.0))
        return cls(problem=problem, points=points, attained=attained, upper=request.known_upper)

    def learn(self, found: SphereBound) -> None:
        """Take over an answer."""
        self.latest = found
        if self.tightest is None or found.upper < self.upper:
            self.tightest = found
        self.upper = min(self.upper, found.upper)


def _source(bound: SphereBound | None) -> dict[str, float | str]:
    """What gave a bound, if it says so."""
    return {} if bound is None else {key: value for key, value in bound.stats.items() if key == "oracle"}


def _summed(bounds: list[SphereBound]) -> dict[str, float | str]:
    """Add up the numbers of several calls; keep the last word where it is text."""
    total: dict[str, float | str] = {}
    for bound in bounds:
        for key, value in bound.stats.items():
            before = total.get(key, 0.0)
            total[key] = value + before if isinstance(value, float) and isinstance(before, float) else value
    return total


def _rescaled(request: BoundRequest, *units: float) -> BoundRequest:
    """The same request in these units, a hair stricter: reductions and rounding are added to the answer afterwards."""

    def divided(value: float) -> float:
        return divided_by_units(value, *units) * (1.0 - 1e-9)

    return BoundRequest(
        rtol=request.rtol * (1.0 - 1e-6),
        floor=divided(request.floor),
        # Not stricter: this one is taken for proven.
        known_upper=in_units(request.known_upper, *(1.0 / unit for unit in units)) * (1.0 + 1e-9),
        target=None if request.target is None else divided(request.target),
        deadline=request.deadline,
    )
