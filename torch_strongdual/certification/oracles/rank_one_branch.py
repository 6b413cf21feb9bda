"""Branches that use one unit a layer: what the maximisers of linear and two-layer dual norms look like."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.nn.branch_spec import BranchSpec

__all__ = ["rank_one_branch"]

FloatArray = NDArray[np.float64]


def rank_one_branch(spec: BranchSpec, first: FloatArray, last: FloatArray) -> tuple[Tensor, ...]:
    """Weights of a branch of the full widths in which only the first unit of each hidden layer is alive.

    Args:
        spec: Architecture.
        first: Unit vector, shape ``(in_features,)``.
        last: Unit vector, shape ``(out_features,)``.

    Returns:
        One float64 tensor a layer, shape ``(out, in)``, of Frobenius norm one; the layers in between pass the unit on.

    Example:
        >>> from torch_strongdual.nn.branch_spec import BranchActivation
        >>> spec = BranchSpec(widths=(2, 2, 1), activations=(BranchActivation(),))
        >>> [w.tolist() for w in rank_one_branch(spec, np.array([0.6, 0.8]), np.array([-1.0]))]
        [[[0.6, 0.8], [0.0, 0.0]], [[-1.0, 0.0]]]
    """
    widths = (spec.in_features, *spec.hidden_widths, spec.out_features)
    weights = [torch.zeros(fan_out, fan_in, dtype=torch.float64) for fan_in, fan_out in pairwise(widths)]
    weights[0][0] = torch.from_numpy(np.array(first, dtype=np.float64))
    for middle in weights[1:-1]:
        middle[0, 0] = 1.0
    weights[-1][:, 0] = torch.from_numpy(np.array(last, dtype=np.float64))
    return tuple(weights)
