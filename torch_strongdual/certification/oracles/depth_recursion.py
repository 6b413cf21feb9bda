"""Upper bounds for branches with several activations, from an oracle for one."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.dual_norm_bound import DualNormBound
from torch_strongdual.certification.oracles._depth.deep_witnesses import (
    Branch,
    best_value,
    chain_branches,
    improved_branches,
    mixed_branch,
    unit_images,
    valued_witnesses,
)
from torch_strongdual.certification.oracles._depth.open_reason import reason_of
from torch_strongdual.certification.oracles._depth.sample_groups import SampleGroups
from torch_strongdual.certification.oracles._depth.side_memory import SideBound, SideMemory
from torch_strongdual.certification.oracles._depth.side_proof import proven_cells, proven_side
from torch_strongdual.certification.oracles._depth.sign_cells import cases_of
from torch_strongdual.certification.oracles._depth.slope_search import SlopeSearch, find_slopes
from torch_strongdual.certification.oracles._depth.slope_tree import SlopeTree
from torch_strongdual.certification.oracles._direction_cones import DirectionBound, bound_over_directions
from torch_strongdual.certification.oracles._reduced_state import ReducedState
from torch_strongdual.certification.oracles._verified_psd import gamma
from torch_strongdual.certification.oracles.abstract_oracle import AbstractDualNormOracle, BoundRequest, common_refusal
from torch_strongdual.certification.oracles.abstract_two_layer_oracle import AbstractTwoLayerOracle
from torch_strongdual.certification.oracles.row_space import (
    UNIT_ROUNDOFF,
    RowSpace,
    divided_by_units,
    in_units,
    power_of_two_scale,
)
from torch_strongdual.errors import UnsupportedModelError
from torch_strongdual.nn.branch_spec import BranchActivation, BranchSpec

__all__ = ["DepthRecursion", "DepthRecursionState"]

FloatArray = NDArray[np.float64]

_MAX_ACTIVATIONS = 6
_MOST_PAIRS = 500  # to begin with
_MOST_STARS = 1200
_COARSE = 0.015  # tolerances above are for lines alone
_SPLIT_SHARE = 0.7  # of the time left when the lines are at their best
_LEAST_GAIN = 1e-4  # of going on with a case
_EASY_RANK = 5  # leaves are proven in a fraction of the time that their slopes take


@dataclass(slots=True, kw_only=True, eq=False)
class DepthRecursionState(ReducedState):
    """The reduced data, and what searches found.

    Args:
        slopes: Slopes left of zero of the activations that bend, first layer first.
        memory: What searches for one output found.
    """

    slopes: tuple[float, ...]
    memory: SideMemory = field(default_factory=lambda: SideMemory())


@final
class DepthRecursion(AbstractDualNormOracle):
    r"""Bounds for branches with two or more ReLU or leaky ReLU activations (L >= 3), of any widths.

    The functional :math:`\sum_i \alpha_i (g_i)_+ + \beta_i (-g_i)_+` of the last pre-activations starts as
    :math:`(\lambda, -a\lambda)`. Its concave kinks are replaced by lines :math:`\tau_i g_i` above them; what is left is convex,
    so that its maximum over the absolute convex hull of the features of shorter branches is at a feature or its negative.
    This gives two functionals one layer deeper, and in the end problems for ``inner``:

    .. math:: \kappa(\lambda) \le \max_{\pm} \min_\tau \max_{\text{leaves}} \; \max_{\|u\| \le 1} f_{\text{leaf}}(X u).

    All slopes :math:`\tau` are valid. They are optimised over all layers at once with local maxima in place of proven ones, and
    proven once at the end. Narrow hidden layers only shrink the set of features, so the bound holds for all widths.

    Lines alone would let positive and negative combinations of features each have their best: on residuals of noise that no
    branch can follow the bound would be 2 to 4 times a branch. Neighbouring samples with duals of opposite signs are therefore
    bounded together. What that leaves grows with the distance of neighbours, hence with the number of columns.

    Where that is still loose, the rank is small and the tolerance asked for is below 1.5 per cent, the bound is the largest
    of several cases: whether the last pre-activation of a sample, the one on which the lines lose most, is positive or not.

    Several outputs are bounded from single directions of them: :math:`\kappa(\Lambda v)` is sublinear in v, so that few
    directions, chosen where the bound is worst, lose one or two per cent (``stats["outputs"]`` says how many they were).

    Args:
        inner: Oracle for one activation. It decides how tight and how slow the leaves are.

    Example:
        >>> import torch
        >>> from torch_strongdual.certification.deadline import Deadline
        >>> from torch_strongdual.certification.oracles.quadratic_relaxation import QuadraticRelaxation
        >>> from torch_strongdual.nn.branch_spec import BranchActivation
        >>> spec = BranchSpec(widths=(2, 4, 1, 1), activations=(BranchActivation(), BranchActivation()))
        >>> oracle = DepthRecursion(QuadraticRelaxation())
        >>> state = oracle.init(spec, torch.eye(2))
        >>> bound = oracle.bound(state, torch.tensor([[3.0], [4.0]]).double(), BoundRequest(deadline=Deadline()))
        >>> round(bound.lower, 4), round(bound.upper, 2)  # duals of one sign: as with one activation
        (5.0, 5.0)

    References:
        Wang, Ergen, Pilanci, "Parallel Deep Neural Networks Have Zero Duality Gap", ICLR 2023 (the dual problem).
        https://arxiv.org/abs/2110.06482
    """

    def __init__(self, inner: AbstractTwoLayerOracle) -> None:
        self.inner = inner

    def supports(self, spec: BranchSpec) -> str | None:
        """Two or more ReLU or leaky ReLU activations with slopes in [0, 1], without hidden biases or gates."""
        if (reason := common_refusal(self, spec)) is not None:
            return reason
        if spec.is_gated:
            return "gated branches need GatedOracle"
        slopes = [a.negative_slope for a in spec.activations]
        outside = [slope for slope in slopes if not 0.0 <= slope <= 1.0]
        if outside:
            return f"negative slopes {outside} lie outside [0, 1]; use slopes between 0 (ReLU) and 1 (identity)"
        bends = [slope for slope in slopes if slope != 1.0]
        if len(bends) < 2:
            return f"DepthRecursion is for branches with two or more activations; this one has {len(bends)}: {spec}"
        if any(bends) and len(bends) > _MAX_ACTIVATIONS:
            return f"{len(bends)} leaky activations need 2^{len(bends)} bounds; use ReLU or at most {_MAX_ACTIVATIONS} of them"
        return None

    def init(self, spec: BranchSpec, inputs: Tensor) -> DepthRecursionState:
        """Reduce the inputs to their row space, and let ``inner`` compile what it will need."""
        if (reason := self.supports(spec)) is not None:
            raise UnsupportedModelError(reason)
        slopes = tuple(a.negative_slope for a in spec.activations if not a.is_identity)
        state = DepthRecursionState.of(spec, inputs, slopes=slopes)
        if (rank := state.row_space.rank) > 0:
            leaf = BranchSpec(widths=(rank, 1, 1), activations=(BranchActivation(),))
            self.inner.init(leaf, torch.from_numpy(state.row_space.rows))
        return state

    def bound(self, state: DepthRecursionState, dual_point: Tensor, request: BoundRequest) -> DualNormBound:
        """Bound the dual norm; see :meth:`AbstractDualNormOracle.bound`."""
        begin = time.perf_counter()
        duals = dual_point.detach().cpu().numpy().astype(np.float64)
        if (known := state.answer_at_once(duals, type(self).__name__)) is not None:
            return known
        dual_scale = power_of_two_scale(duals)
        duals = duals / dual_scale
        units = (state.scale, dual_scale)
        unit = in_units(1.0, *units)
        branches, points = self._chains(state, duals)
        lower = best_value(state.spec, state.matrix, duals, branches)
        target = None if request.target is None else divided_by_units(request.target, *units)
        floor = divided_by_units(request.floor, *units)
        asked = BoundRequest(rtol=request.rtol, floor=floor, target=target, deadline=request.deadline)
        if duals.shape[1] == 1:
            sides = self._both_signs(state, duals[:, 0], asked, lower, points)
            upper, method = max(side.upper for side in sides), "one output"
        else:
            sides, upper, method = self._several_outputs(state, duals, asked, points)
        # Features of a unit branch have at most the norm of the data: every activation is 1-Lipschitz and fixes 0.
        trivial = float(np.linalg.norm(duals) * np.linalg.norm(state.matrix)) * (1.0 + gamma(duals.size + state.matrix.size))
        branches += [found for side in sides if (found := self._mixed(state, side)) is not None]
        witnesses = valued_witnesses(state.spec, state.matrix, duals, branches, unit=unit)
        if witnesses and min(upper, trivial) > (1.0 + request.rtol) * divided_by_units(witnesses[0].value, *units):
            branches += improved_branches(state.spec, state.matrix, duals, witnesses, request.deadline)
            witnesses = valued_witnesses(state.spec, state.matrix, duals, branches, unit=unit)
        used = [p for side in sides if side.search is not None for p in side.search.points]
        state.starts = np.concatenate([points[:16], *used])[:64]
        stats: dict[str, float | str] = {
            "oracle": f"{type(self).__name__}({type(self.inner).__name__})",
            "rank": float(state.row_space.rank),
            "outputs": method,
            "seconds": time.perf_counter() - begin,
        }
        upper = in_units(min(upper, trivial), *units, round_up=True)
        lower = witnesses[0].value if witnesses else 0.0
        if not upper <= (1.0 + request.rtol) * lower:
            stats["limited_by"] = reason_of(sides, request, len(state.slopes))
        return DualNormBound(
            upper=upper,
            lower=lower,
            witnesses=witnesses,
            stats=stats,
        )

    def _chains(self, state: DepthRecursionState, duals: FloatArray) -> tuple[list[Branch], FloatArray]:
        """Branches with one unit a layer, and their directions in reduced coordinates."""
        return chain_branches(state.spec, state.row_space.rows, state.row_space.basis, duals, state.known_starts)

    def _mixed(self, state: DepthRecursionState, side: SideBound) -> Branch | None:
        """The layer of units that the linear program of the slope search ended with, for two activations (or all ReLU)."""
        if side.search is None or len(side.search.choices.slopes) != 1:
            return None
        mixture = [atom for atom in side.search.mixture if atom.leaf < 2]  # two: groups alone
        if not mixture:
            return None
        units = np.array([atom.point for atom in mixture]) @ state.row_space.basis.T
        weights = np.array([atom.weight if atom.leaf == 0 else -atom.weight for atom in mixture])
        return mixed_branch(state.spec, units, weights)

    def _several_outputs(
        self, state: DepthRecursionState, duals: FloatArray, request: BoundRequest, points: FloatArray
    ) -> tuple[list[SideBound], float, str]:
        """Bound as many output directions as it takes, or as time allows."""
        outputs = RowSpace.of(duals)  # columns along principal directions: only Lam Lam' matters
        # Rounding of Lam v, and what the reduction of the outputs lost, act on features of at most the norm of the data.
        size = float(np.linalg.norm(state.matrix)) * (1.0 + gamma(state.matrix.size))
        rounding = 2.0 * gamma(outputs.rank + 4) * float(np.linalg.norm(outputs.rows)) * size
        sides: list[SideBound] = []

        def bound_along(direction: FloatArray, deadline: Deadline) -> DirectionBound:
            floor = request.floor if outputs.rank == 1 else 0.0
            asked = BoundRequest(rtol=request.rtol, floor=floor, deadline=deadline)
            both = self._both_signs(state, outputs.rows @ direction, asked, 0.0, points)
            sides.extend(both)
            branches = [branch for side in both if (branch := self._mixed(state, side)) is not None]
            return DirectionBound(
                upper=max(side.upper for side in both) + rounding,
                images=unit_images(state.spec, state.matrix, outputs.rows, branches),
            )

        chains = chain_branches(state.spec, state.row_space.rows, state.row_space.basis, outputs.rows, points)[0]
        found = bound_over_directions(
            bound_along,
            outputs.rank,
            images=unit_images(state.spec, state.matrix, outputs.rows, chains),
            enough=max(request.floor, request.target or 0.0),
            rtol=request.rtol,
            deadline=request.deadline,
        )
        upper = found.upper * outputs.basis_norm + outputs.remainder * size
        return sides, upper * (1.0 + 16 * UNIT_ROUNDOFF), f"{found.num_directions} directions of {outputs.rank} outputs"

    def _both_signs(
        self, state: DepthRecursionState, duals: FloatArray, request: BoundRequest, lower: float, points: FloatArray
    ) -> list[SideBound]:
        """One-sided bounds for ``duals`` and ``-duals``; the second need not be smaller than the first."""
        hidden = points @ state.row_space.rows.T
        values = np.maximum(hidden, 0.0) @ duals
        signs = (1.0, -1.0) if float(np.max(values, initial=0.0)) >= float(np.max(-values, initial=0.0)) else (-1.0, 1.0)
        enough = max(request.floor, request.target or 0.0, (1.0 + request.rtol) * lower)
        sides: list[SideBound] = []
        for sign in signs:
            deadline = request.deadline if sides else request.deadline.fraction(0.6)
            asked = BoundRequest(rtol=request.rtol, floor=enough, deadline=deadline)
            sides.append(self._one_side(state, sign * duals, asked, points))
            enough = max(enough, sides[0].upper if math.isfinite(sides[0].upper) else 0.0)
        enough = max(request.floor, request.target or 0.0, (1.0 + request.rtol) * lower)
        asked = BoundRequest(rtol=request.rtol, floor=enough, deadline=request.deadline.fraction(_SPLIT_SHARE))
        return self._split_by_signs(state, sides, asked, points)

    def _split_by_signs(
        self, state: DepthRecursionState, sides: list[SideBound], request: BoundRequest, points: FloatArray
    ) -> list[SideBound]:
        """Tighten the larger bound by cases: whether the last pre-activation of some sample is positive."""
        rows, sides = state.row_space.rows, list(sides)
        if request.rtol > _COARSE or state.row_space.rank > _EASY_RANK:
            return sides
        while not request.deadline.expired:
            worst = max(range(len(sides)), key=lambda index: sides[index].upper)
            cells = sides[worst].cells or (sides[worst],)
            number = max(range(len(cells)), key=lambda index: cells[index].upper)
            known = cells[number].search
            if known is None or sides[worst].upper <= request.floor:
                break
            trees = cases_of(known, rows, request, cells[number].upper)
            parts = tuple(self._cell(state, known, tree, request, points) for tree in trees)
            if not parts or (len(parts) == 1 and not parts[0].upper < (1.0 - _LEAST_GAIN) * cells[number].upper):
                break
            sides[worst] = state.memory.remember(known.tree.duals, sides[worst].split(number, parts))
        return sides

    def _cell(
        self, state: DepthRecursionState, known: SlopeSearch, tree: SlopeTree, request: BoundRequest, points: FloatArray
    ) -> SideBound:
        """Bound one case, from where the search for all of them ended."""
        if tree is known.tree and known.is_at_best:
            return self._proven(state, known, request)
        search = find_slopes(
            tree,
            state.row_space.rows,
            starts=points,
            rtol=request.rtol,
            enough=request.floor / (1.0 + request.rtol),
            deadline=request.deadline,
            atoms=known.mixture,
            choices=known.choices if tree is known.tree else None,
        )
        return self._proven(state, search, request)

    def _one_side(self, state: DepthRecursionState, duals: FloatArray, request: BoundRequest, points: FloatArray) -> SideBound:
        """Bound the maximum of ``duals' phi`` over unit branches."""
        rows = state.row_space.rows
        if (reason := self.inner.limits(rows.shape[1], rows.shape[0], 1)) is not None:
            return SideBound(upper=math.inf, search=None, limited_by=reason)
        enough = request.floor / (1.0 + request.rtol)
        known = state.memory.recall(duals)
        if known is not None and known.answers(request, enough):
            return known
        if known is not None and known.is_unproven:
            return state.memory.remember(duals, proven_cells(self.inner, state.row_space, known, request))
        search = None if known is None else known.search
        if search is None or not search.is_at_best:
            search = find_slopes(
                self._tree(state, duals) if search is None else search.tree,
                rows,
                starts=points,
                rtol=request.rtol,
                enough=enough,
                deadline=request.deadline.fraction(0.85 if rows.shape[1] <= _EASY_RANK else 0.4),
                atoms=state.memory.atoms_near(duals) if search is None else search.mixture,
                choices=None if search is None else search.choices,
            )
        return state.memory.remember(duals, self._proven(state, search, request))

    def known_search(self, state: DepthRecursionState, duals: FloatArray) -> SlopeSearch:  # (n,)
        """Where the search for these one-sided duals (in the units of the reduced problem) ended, or one not begun."""
        known = state.memory.recall(duals)
        if known is not None and known.search is not None:
            return known.search
        tree = self._tree(state, duals)
        return SlopeSearch(tree=tree, choices=tree.middle(), estimate=math.inf, points=[], mixture=[])

    def suggest(self, state: DepthRecursionState, searches: Sequence[SlopeSearch]) -> None:
        """Have :meth:`bound` take these lines when asked for the duals of their trees: it will only prove them.

        Args:
            state: From :meth:`init`.
            searches: Without signs first, then, if there are any, one for each case of a partition by signs.

        Raises:
            ValueError: If the first one has signs: what bounds one case would be taken for a bound on all.
        """
        if searches[0].tree.signs is not None:
            raise ValueError("The first search is of one case only; expected one without signs.")
        cells = tuple(SideBound(upper=math.inf, search=search) for search in searches[1:])
        state.memory.remember(searches[0].tree.duals, SideBound(upper=math.inf, search=searches[0], cells=cells))

    def _tree(self, state: DepthRecursionState, duals: FloatArray) -> SlopeTree:
        """What to choose slopes and flows for."""
        most_stars = _MOST_STARS if len(state.slopes) == 2 else 0
        groups = SampleGroups.neighbours(state.row_space.rows, duals, most_pairs=_MOST_PAIRS, most_stars=most_stars)
        return SlopeTree.of(duals, state.slopes, groups)

    def _proven(self, state: DepthRecursionState, search: SlopeSearch, request: BoundRequest) -> SideBound:
        return proven_side(self.inner, state.row_space, search, request)
