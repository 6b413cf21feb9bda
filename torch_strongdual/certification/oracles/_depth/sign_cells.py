"""Where lines lose most: whether the last pre-activation of a sample is positive, case by case."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._depth.slope_search import SlopeSearch
from torch_strongdual.certification.oracles._depth.slope_tree import SlopeTree
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest

__all__ = ["cases_of"]

FloatArray = NDArray[np.float64]

_LEAST_LOSS = 1e-4  # of the estimate


def _sample_to_split(search: SlopeSearch, rows: FloatArray) -> int | None:
    r"""The sample whose sign, were it known, would take most from the bound; ``None`` if none would.

    A mixture of positive and negative features, P and -N, gains :math:`\lambda_i P_i` where :math:`\lambda_i > 0`, but is worth
    :math:`\lambda_i (P_i - N_i)_+`: less by :math:`\lambda_i \min(P_i, N_i)`.
    """
    tree = search.tree
    if tree.num_inner != 1 or not search.mixture:
        return None
    hidden = np.maximum(np.array([atom.point for atom in search.mixture]) @ rows.T, 0.0)
    weights = np.array([atom.weight for atom in search.mixture])
    leaves = np.array([atom.leaf for atom in search.mixture])
    plus, minus = (weights * (leaves == 0)) @ hidden, (weights * (leaves == 1)) @ hidden
    losses = np.maximum(tree.duals, 0.0) * np.minimum(plus, minus)
    if tree.signs is not None:
        losses[tree.signs != 0] = 0.0
    best = int(losses.argmax())
    return best if losses[best] > _LEAST_LOSS * search.estimate else None


def cases_of(search: SlopeSearch, rows: FloatArray, request: BoundRequest, upper: float) -> tuple[SlopeTree, ...]:
    """The tree itself if its lines or their proof can be better, else those for both signs of a sample; none if none helps."""
    is_proven = upper <= (1.0 + request.rtol) * max(search.estimate, request.floor / (1.0 + request.rtol))
    if not (search.is_at_best and is_proven):
        return (search.tree,)
    sample = _sample_to_split(search, rows)
    return () if sample is None else tuple(search.tree.with_sign(sample, sign) for sign in (1.0, -1.0))
