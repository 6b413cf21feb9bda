"""Why a gap stays open, in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from torch_strongdual.certification.dual_norm_bound import DualNormBound

__all__ = ["expected_gap", "non_finite_reason", "reason_of"]

_LEAST_RATE = 0.05


def reason_of(
    last: DualNormBound,
    *,
    best: float,
    attainable: float,
    primal: float,
    scale: float,
    limit: float,
    oracle: str,
    has_expired: bool,
    seconds: float,
    history: Sequence[tuple[float, float]],
) -> str:
    """What keeps the gap open: the network, or the proof, whichever is farther from the other.

    Args:
        last: What the oracle said last.
        best: Best dual bound.
        attainable: Best objective known.
        primal: Objective of the network.
        scale: What gaps are relative to.
        limit: Largest dual norm of feasible points.
        oracle: Name of the oracle, where ``last`` names none.
        has_expired: Whether the time is up.
        seconds: Time spent.
        history: Pairs of seconds and the relative gap proven by then.
    """
    excess, unproven = (primal - attainable) / scale, (attainable - best) / scale
    if excess >= unproven:
        better = f"a network with objective {attainable:.6g} exists, {100 * excess:.2g} % lower"
        return f"open because {better}: train longer or add `improving_branches`"
    looseness = last.upper / max(last.lower, limit) - 1.0
    limited_by = last.stats.get("limited_by", "the time for column generation" if has_expired else "rtol")
    name, rank = last.stats.get("oracle", oracle), last.stats.get("rank")
    kind = f"the dual norm of rank {rank:.0f} branches" if isinstance(rank, float) else "the dual norm"
    reason = f"open because {name} knows {kind} to {100 * looseness:.2g} % only, limited by {limited_by}"
    expected = expected_gap(history, 5.0 * seconds) if has_expired else math.nan
    if not math.isfinite(expected):
        return reason
    estimate = f"with {5 * seconds:.2g} s instead of {seconds:.2g} s expect a gap of {100 * expected:.1g} % (an estimate)"
    return f"{reason}; {estimate}"


def non_finite_reason(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Which of the tensors, given with their names in the order of computation, are the first to hold what is no number.

    Example:
        >>> non_finite_reason([("inputs", torch.zeros(3, 2)), ("weights", torch.tensor([1.0, torch.nan]))])
        'due to `weights`, where 1 of 2 numbers is not finite, the first in row 1'
    """
    for name, tensor in tensors:
        wrong = ~torch.isfinite(tensor)
        count = int(wrong.sum())
        if count:
            row = int(wrong.reshape(len(wrong), -1).any(dim=1).nonzero()[0])
            verb = "is" if count == 1 else "are"
            return f"due to `{name}`, where {count} of {tensor.numel()} numbers {verb} not finite, the first in row {row}"
    return "due to an objective beyond all numbers: divide data, or targets, by their size"


def expected_gap(history: Sequence[tuple[float, float]], seconds: float) -> float:
    """Estimate of the gap after ``seconds`` by the power law through the start and the end of the second half of a history.

    NaN where the gap did not fall measurably: there is no pace to go by.

    Example:
        >>> round(expected_gap([(1.0, 0.4), (2.0, 0.2), (4.0, 0.1)], 8.0), 3)
        0.05
    """
    known = [(time, gap) for time, gap in history if time > 0.0 and math.isfinite(gap) and gap > 0.0]
    if len(known) < 2:
        return math.nan
    last_time, last_gap = known[-1]
    earlier = [pair for pair in known if pair[0] <= 0.5 * last_time]
    if not earlier or seconds <= last_time:
        return math.nan
    time, gap = earlier[-1]
    rate = math.log(gap / last_gap) / math.log(last_time / time)
    return last_gap * (last_time / seconds) ** rate if rate >= _LEAST_RATE else math.nan
