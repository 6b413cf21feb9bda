"""Quasi-Newton steps on the atoms in use: there the restricted problem is smooth, and first-order steps are slow."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.deadline import Deadline

__all__ = ["polished"]

FloatArray = NDArray[np.float64]

_MAX_ITERATIONS = 300  # of L-BFGS
_IMPORT_SECONDS = 2.0  # what the first import of the minimiser takes on a busy machine


def polished(
    value_and_residual: Callable[[Tensor], tuple[float, Tensor]],
    atoms: Tensor,  # shape: (num_samples, num_atoms)
    weights: Tensor,  # shape: (num_atoms,)
    point: Tensor,  # shape: (num_atoms, out_features)
    *,
    deadline: Deadline,
) -> Tensor:  # shape: (num_atoms, out_features)
    """Minimise ``loss(A V) + sum_j weights_j ||V_j||`` over the non-zero rows of ``point``, by L-BFGS.

    Args:
        value_and_residual: Loss and its negative gradient at outputs.
        atoms: A.
        weights: Zero for an unpenalised row.
        point: Rows that are zero stay zero.
        deadline: When to stop; where it leaves no time to import the minimiser, ``point`` comes back as it is.
    """
    if deadline.expired or ("scipy.optimize" not in sys.modules and deadline.remaining < _IMPORT_SECONDS):
        return point
    from scipy.optimize import minimize

    used = (torch.linalg.vector_norm(point, dim=1) > 0) | (weights == 0)
    columns, penalties, start = atoms[:, used], weights[used].cpu().numpy(), point[used].cpu().numpy()

    def objective(flat: FloatArray) -> tuple[float, FloatArray]:
        rows = flat.reshape(start.shape)
        value, residual = value_and_residual(columns @ torch.from_numpy(rows).to(columns.device))
        norms = np.linalg.norm(rows, axis=1)
        directions = rows / np.maximum(norms, 1e-300)[:, None]
        gradient = penalties[:, None] * directions - (columns.T @ residual).cpu().numpy()
        return value + float(penalties @ norms), gradient.ravel()

    def stop_in_time(_: FloatArray) -> None:
        if deadline.expired:
            raise StopIteration

    found = minimize(
        objective,
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        callback=stop_in_time,
        options={"maxiter": _MAX_ITERATIONS, "maxcor": 30, "ftol": 1e-15, "gtol": 1e-12},
    )
    result = point.clone()
    result[used] = torch.from_numpy(np.asarray(found.x).reshape(start.shape)).to(result.device)
    return result
