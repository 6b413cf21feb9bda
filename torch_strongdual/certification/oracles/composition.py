"""Oracles made of oracles: ask in turn until the answer will do, or ask all and keep the best of each."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.dual_norm_bound import DualNormBound, Witness, distinct_witnesses
from torch_strongdual.certification.oracles.abstract_oracle import AbstractDualNormOracle, BoundRequest
from torch_strongdual.errors import InvalidInputError, UnsupportedModelError
from torch_strongdual.nn.branch_spec import BranchSpec

__all__ = ["CompositeState", "FirstTight", "Tightest"]

_MAX_WITNESSES = 32
_SAME = 1.0 - 1e-6  # cosine of a tenth of a degree


@dataclass(slots=True, kw_only=True, eq=False)
class CompositeState:
    """The data, and the states of those members that were asked so far.

    Args:
        spec: Architecture of the branches.
        inputs: A copy of the raw inputs.
        states: State of each member by its number.
    """

    spec: BranchSpec
    inputs: Tensor
    states: dict[int, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, eq=False)
class _Gathered:
    """Best bounds of the members so far, and who gave them."""

    upper: float = math.inf
    lower: float = 0.0
    witnesses: tuple[Witness, ...] = ()
    ran: list[str] = field(default_factory=list)
    upper_by: str = "none"
    limited_by: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, found: DualNormBound) -> None:
        """Take over what is better."""
        self.ran.append(name)
        if found.upper < self.upper:
            self.upper, self.upper_by = found.upper, name
        self.witnesses = tuple(distinct_witnesses([*self.witnesses, *found.witnesses], number=_MAX_WITNESSES, cosine=_SAME))
        self.lower = max(self.lower, found.lower)
        if "limited_by" in found.stats:
            self.limited_by[name] = str(found.stats["limited_by"])


class _AbstractComposite(AbstractDualNormOracle):
    """What both compositions share.

    Args:
        oracles: Members, in the order in which they are asked.

    Raises:
        InvalidInputError: If there are none.
    """

    def __init__(self, oracles: Sequence[AbstractDualNormOracle]) -> None:
        if not oracles:
            raise InvalidInputError("`oracles` is empty; expected at least one dual norm oracle.")
        self._oracles = tuple(oracles)

    @abstractmethod
    def _is_done(self, gathered: _Gathered, request: BoundRequest) -> bool:
        """Whether the members not yet asked are left out."""

    def supports(self, spec: BranchSpec) -> str | None:
        """What any member supports."""
        reasons = [oracle.supports(spec) for oracle in self._oracles]
        return None if None in reasons else "; ".join(dict.fromkeys(reason for reason in reasons if reason))

    def init(self, spec: BranchSpec, inputs: Tensor) -> CompositeState:
        """Keep a copy of the data; members prepare themselves when they are first asked."""
        if (reason := self.supports(spec)) is not None:
            raise UnsupportedModelError(reason)
        return CompositeState(spec=spec, inputs=inputs.detach().clone())

    def bound(self, state: CompositeState, dual_point: Tensor, request: BoundRequest) -> DualNormBound:
        """Ask the members that support the branch; see :meth:`AbstractDualNormOracle.bound`."""
        begin = time.perf_counter()
        gathered = _Gathered()
        numbers = [i for i, oracle in enumerate(self._oracles) if oracle.supports(state.spec) is None]
        for position, number in enumerate(numbers):
            oracle = self._oracles[number]
            if number not in state.states:
                state.states[number] = oracle.init(state.spec, state.inputs)
            asked = _shared(request, gathered.lower, members_left=len(numbers) - position)
            gathered.add(type(oracle).__name__, oracle.bound(state.states[number], dual_point, asked))
            if self._is_done(gathered, request):
                break
        stats: dict[str, float | str] = {
            "oracle": type(self).__name__,
            "ran": ", ".join(gathered.ran),
            "upper_by": gathered.upper_by,
            "seconds": time.perf_counter() - begin,
        }
        limits = gathered.limited_by
        if gathered.upper_by in limits:
            stats["limited_by"] = limits[gathered.upper_by]
        elif gathered.upper == math.inf:
            stats["limited_by"] = "; ".join(f"{name}: {reason}" for name, reason in limits.items())
        return DualNormBound(upper=gathered.upper, lower=gathered.lower, witnesses=gathered.witnesses, stats=stats)


@final
class FirstTight(_AbstractComposite):
    """Asks oracles in order and stops at the first that answers the request: cheap ones first.

    Members that do not support the branch are skipped. Each gets an equal part of the time that is left, so that none
    starves the next. Later members know the best value found so far, and need not prove less than it.

    Example:
        >>> import torch
        >>> from torch_strongdual.certification.oracles.angular_sweep_oracle import AngularSweepOracle
        >>> from torch_strongdual.certification.oracles.rank_one_oracle import RankOneOracle
        >>> from torch_strongdual.nn.branch_spec import BranchActivation
        >>> oracle = FirstTight([RankOneOracle(), AngularSweepOracle()])
        >>> state = oracle.init(BranchSpec(widths=(2, 1, 1), activations=(BranchActivation(),)), torch.eye(2))
        >>> found = oracle.bound(state, torch.ones(2, 1).double(), BoundRequest(deadline=Deadline()))
        >>> found.stats["upper_by"]
        'AngularSweepOracle'
    """

    def _is_done(self, gathered: _Gathered, request: BoundRequest) -> bool:
        """Stop as soon as the request is met."""
        return request.is_met(gathered.upper, gathered.lower)


@final
class Tightest(_AbstractComposite):
    """Asks all oracles and keeps the smallest upper bound, the largest lower one and all witnesses.

    Members share the time: each gets an equal part of what is left, so that what one does not use goes to the others.

    Example:
        >>> import torch
        >>> from torch_strongdual.certification.oracles.angular_sweep_oracle import AngularSweepOracle
        >>> from torch_strongdual.certification.oracles.local_search import LocalSearch
        >>> from torch_strongdual.nn.branch_spec import BranchActivation
        >>> oracle = Tightest([LocalSearch(), AngularSweepOracle()])
        >>> state = oracle.init(BranchSpec(widths=(2, 1, 1), activations=(BranchActivation(),)), torch.eye(2))
        >>> oracle.bound(state, torch.ones(2, 1).double(), BoundRequest(deadline=Deadline())).stats["ran"]
        'LocalSearch, AngularSweepOracle'
    """

    def _is_done(self, gathered: _Gathered, request: BoundRequest) -> bool:
        """Never leave out a member."""
        return False


def _shared(request: BoundRequest, lower: float, *, members_left: int) -> BoundRequest:
    """The request for one member: its part of the time, and no need to prove less than what is attained already."""
    floor = max(request.floor, (1.0 + request.rtol) * lower)
    deadline: Deadline = request.deadline if members_left == 1 else request.deadline.fraction(1.0 / members_left)
    return BoundRequest(rtol=request.rtol, floor=floor, target=request.target, deadline=deadline)
