"""Where lines lose most: whether the last pre-activation of a sample is positive, case by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._depth.slope_search import SlopeSearch
from torch_strongdual.certification.oracles._depth.slope_tree import SlopeTree
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest

__all__ = ["cases_of", "covers_all_signs", "samples_to_split"]

FloatArray = NDArray[np.float64]

_LEAST_LOSS = 1e-4  # of the estimate


def samples_to_split(search: SlopeSearch, rows: FloatArray, most: int) -> list[tuple[int, float]]:
    r"""The samples whose signs, were they known, would take most from the bound, and the signs they have in the mixture.

    A mixture of positive and negative features, P and -N, gains :math:`\lambda_i P_i` where :math:`\lambda_i > 0`, but is worth
    :math:`\lambda_i (P_i - N_i)_+`: less by :math:`\lambda_i \min(P_i, N_i)`.

    Args:
        search: With its mixture.
        rows: Data in reduced coordinates.
        most: How many samples at most.
    """
    tree = search.tree
    if tree.num_inner != 1 or not search.mixture:
        return []
    hidden = np.maximum(np.array([atom.point for atom in search.mixture]) @ rows.T, 0.0)
    weights = np.array([atom.weight for atom in search.mixture])
    leaves = np.array([atom.leaf for atom in search.mixture])
    plus, minus = (weights * (leaves == 0)) @ hidden, (weights * (leaves == 1)) @ hidden
    losses = np.maximum(tree.duals, 0.0) * np.minimum(plus, minus)
    if tree.signs is not None:
        losses[tree.signs != 0] = 0.0
    best = np.argsort(-losses, kind="stable")[:most]
    return [(int(i), 1.0 if plus[i] >= minus[i] else -1.0) for i in best if losses[i] > _LEAST_LOSS * search.estimate]


def cases_of(search: SlopeSearch, rows: FloatArray, request: BoundRequest, upper: float) -> tuple[SlopeTree, ...]:
    """The tree itself if its lines or their proof can be better, else those for both signs of a sample; none if none helps."""
    is_proven = upper <= (1.0 + request.rtol) * max(search.estimate, request.floor / (1.0 + request.rtol))
    if not (search.is_at_best and is_proven):
        return (search.tree,)
    return tuple(search.tree.with_sign(i, sign) for i, _ in samples_to_split(search, rows, 1) for sign in (1.0, -1.0))


def covers_all_signs(cases: Sequence[SlopeTree]) -> bool:
    """Whether any signs of the pre-activations belong to one of ``cases`` at least."""
    if any(case.signs is None for case in cases):
        return True
    return _covers(
        [{int(i): float(case.signs[i]) for i in np.flatnonzero(case.signs)} for case in cases if case.signs is not None]
    )


def _covers(cases: Sequence[Mapping[int, float]]) -> bool:
    if not cases or not all(cases):
        return bool(cases)
    sample = next(iter(cases[0]))
    halves = (
        [{i: s for i, s in case.items() if i != sample} for case in cases if case.get(sample, sign) == sign]
        for sign in (1.0, -1.0)
    )
    return all(_covers(half) for half in halves)
