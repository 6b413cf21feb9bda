"""Training with the activation pattern of every branch fixed, as a cone program that can be differentiated (one output)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification._activation_patterns import MOST_ROUNDS, VIOLATION, near_samples
from torch_strongdual.certification._derivatives.cvxpy_layer import cone_layer, imported_cvxpy, loss_expression, solved_layer
from torch_strongdual.certification._restricted.scaled_loss import ScaledLoss
from torch_strongdual.errors import SolverError

__all__ = ["PatternProgram"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_SETTINGS = {f"tol_{name}": 1e-12 for name in ("gap_abs", "gap_rel", "feas")}  # Clarabel ends with what it can reach


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatternProgram:
    r"""Minimise ``loss(sum_j A_j v_j + b) + limit * sum_j ||v_j||`` over ``v_j`` with ``sides_ji rows_i'v_j >= 0``.

    Args:
        features: A_j, shape (number, num_samples, rank).
        sides: 1 and -1 where branch j has to stay on this side of sample i, 0 where it may be on any, (number, num_samples).
        rows: Coordinates of the samples, shape (num_samples, rank).
        guess: v_j nearby, shape (number, rank), to choose constraints by.
        output_bias: Whether there is b.
    """

    features: FloatArray
    sides: FloatArray
    rows: FloatArray
    guess: FloatArray
    output_bias: bool

    def solve(self, loss: ScaledLoss, limit: Tensor) -> tuple[Tensor, Tensor]:
        """The optimal ``v`` (number, rank) and ``b`` (1,), differentiable in ``limit`` and in the tensors of ``loss``.

        Only constraints near the guess are given to the solver at first; those that turn out violated are added.

        Args:
            loss: In units.
            limit: A number, float64.

        Raises:
            SolverError: If Clarabel does not return a solution within the patterns.
            MissingDependencyError: If cvxpy or cvxpylayers is not installed.
        """
        lengths = np.linalg.norm(self.rows, axis=1)
        unit = float(lengths.max(initial=0.0)) or 1.0
        normals = np.divide(self.rows, lengths[:, None], out=np.zeros_like(self.rows), where=lengths[:, None] > 0)
        chosen = near_samples(self.guess, normals) & (self.sides != 0.0)
        for _ in range(MOST_ROUNDS):
            found, bias = self._solved(loss, limit / (unit * loss.dual_unit), normals, chosen, unit)
            points = found.detach().numpy()
            violated = self._violated(points, normals) & ~chosen
            if not violated.any():
                return found * (loss.output_unit / unit), bias * loss.output_unit
            chosen |= violated
        raise SolverError("The program did not settle within its patterns.", solver="Clarabel", solver_status="violated")

    def _violated(self, points: FloatArray, normals: FloatArray) -> BoolArray:
        largest = np.linalg.norm(points, axis=1).max(initial=0.0)
        return np.asarray(self.sides * (points @ normals.T) < -VIOLATION * largest)

    def _solved(
        self, loss: ScaledLoss, limit: Tensor, normals: FloatArray, chosen: BoolArray, unit: float
    ) -> tuple[Tensor, Tensor]:
        cp = imported_cvxpy()
        number, rank = self.guess.shape
        points, bias = cp.Variable((number, rank)), cp.Variable(1)
        outputs = sum((self.features[j] / unit) @ points[j] for j in range(number))
        outputs = cp.reshape(outputs + (bias if self.output_bias else 0.0), loss.targets.shape, order="C")
        tensors = loss.parameters()
        parameters = [cp.Parameter(tuple(tensor.shape), nonneg=index > 0) for index, tensor in enumerate(tensors)]
        strength = cp.Parameter(nonneg=True)
        cells = [
            (self.sides[j, chosen[j], None] * normals[chosen[j]]) @ points[j] >= 0 for j in range(number) if chosen[j].any()
        ]
        if not self.output_bias:
            cells.append(bias == 0.0)
        objective = loss_expression(loss.kind, outputs, *parameters) + strength * cp.sum(cp.norm(points, 2, axis=1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of inaccurate solutions, and of sizes
            layer = cone_layer(cp.Problem(cp.Minimize(objective), cells), [strength, *parameters], [points, bias])
            found, shift = solved_layer(layer, [limit, *tensors], _SETTINGS)
        if not bool(torch.isfinite(found).all()):
            raise SolverError("The program within patterns was not solved.", solver="Clarabel", solver_status="not finite")
        return found, shift
