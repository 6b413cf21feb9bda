"""Where lines lose most: whether the last pre-activation of a sample is positive, case by case."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._depth.slope_search import SlopeSearch

__all__ = ["sample_to_split"]

FloatArray = NDArray[np.float64]

_LEAST_LOSS = 1e-4  # of the estimate


def sample_to_split(search: SlopeSearch, rows: FloatArray) -> int | None:
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
