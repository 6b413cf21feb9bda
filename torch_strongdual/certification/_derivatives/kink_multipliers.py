"""With what force kinks hold a first layer, also where more of them meet than determine it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["kink_multipliers"]

_DEPENDENT = 1e-9


def kink_multipliers(normals: Tensor, jumps: Tensor, pull: Tensor, rank: int) -> Tensor:  # shape: (number,)
    """``m``, well within [0, 1] if possible, with ``sum_i m_i jumps_i normals_i`` equal to the part of ``pull`` across kinks.

    At a minimum there are such with all of them between 0 and 1. Normals of linearly dependent samples leave a choice; the
    minimum keeps to these kinks when the problem changes a little if some choice is strictly inside (zero is then in the
    relative interior of the subdifferential, and the objective is partly smooth there).

    Args:
        normals: Of the kinks, shape (number, dimension).
        jumps: Of the derivative at each.
        pull: Minus the derivative along the first layer, shape (dimension,).
        rank: Of the normals.

    References:
        Lewis, "Active sets, nonsmoothness, and sensitivity", SIAM Journal on Optimization 13, 2002, theorem 5.7.
    """
    forces = torch.linalg.lstsq(normals.T, pull[:, None], driver="gelsd").solution[:, 0]
    unique: Tensor = forces / jumps
    if rank == len(normals) or not bool((jumps > 0.0).all()):
        return unique
    from scipy.optimize import linprog

    # (m, t): the largest t <= 1/2 with t <= m <= 1 - t, in coordinates of the span.
    _, singular, right = np.linalg.svd((normals * jumps[:, None]).numpy().T, full_matrices=False)
    used = singular > _DEPENDENT * singular[0]
    equations = np.hstack([right[used], np.zeros((int(used.sum()), 1))])
    number = len(normals)
    apart = np.vstack([np.hstack([-np.eye(number), np.ones((number, 1))]), np.hstack([np.eye(number), np.ones((number, 1))])])
    found = linprog(
        np.append(np.zeros(number), -1.0),
        A_ub=apart,
        b_ub=np.concatenate([np.zeros(number), np.ones(number)]),
        A_eq=equations,
        b_eq=right[used] @ unique.numpy(),
        bounds=[(None, None)] * number + [(None, 0.5)],
    )
    return torch.from_numpy(np.asarray(found.x[:number])) if found.status == 0 else unique
