"""Training restricted to given branches as a cone program: canonicalised once a size, then solved for any data."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_strongdual.certification._restricted.cvxpy_layer import SOLVER_SETTINGS, cone_layer, imported_cvxpy, solved_layer
from torch_strongdual.certification._restricted.program_data import ProgramData, ProgramShape
from torch_strongdual.certification._restricted.scaled_loss import loss_expression
from torch_strongdual.errors import SolverError

__all__ = ["ProgramSolution", "RestrictedPrograms", "fits_layer", "fits_program"]

# Atoms times samples times outputs. Measured: at this size canonicalising takes up to half a second, as long as one to three
# solutions by first-order steps, and a solution a tenth of that; at eight times the size seconds and gigabytes.
_LARGEST_LAYER = 16_000
# The same for programs solved once by CVXPY: up to this size Clarabel was 2 to 12 times faster than first-order steps, and
# eight times slower at 240 000 with ten outputs.
_LARGEST_PROGRAM = 100_000
_KEPT = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProgramSolution:
    """Optimum of a restricted program, in the units of the training problem.

    Args:
        coefficients: Shape ``(num_atoms, out_features)``; rows of atoms not used are small, not zero.
        dual_point: Multipliers of the outputs, shape ``(num_samples, out_features)``.
    """

    coefficients: Tensor
    dual_point: Tensor


def fits_layer(shape: ProgramShape) -> bool:
    """Whether programs of this (padded) shape are kept in parametrised form."""
    return shape.num_numbers <= _LARGEST_LAYER


def fits_program(shape: ProgramShape) -> bool:
    """Whether programs of this shape are for an interior point method at all."""
    return shape.num_numbers <= _LARGEST_PROGRAM


class RestrictedPrograms:
    """Solves restricted programs by Clarabel, through cvxpylayers, and keeps what it has canonicalised.

    The atom matrix is a parameter, padded to a power of two, so that a growing set of atoms meets the same program again. The
    least recently used ones are dropped. Programs too large to keep in parametrised form are solved once by cvxpy.

    Args:
        max_kept: Number of canonicalised programs kept.
    """

    def __init__(self, max_kept: int = _KEPT) -> None:
        self._max_kept = max_kept
        self._layers: OrderedDict[ProgramShape, Any] = OrderedDict()
        self.num_canonicalised = 0
        self.num_solved = 0

    def __getstate__(self) -> dict[str, Any]:
        """What was canonicalised is not pickled or copied: it can be made again."""
        return {"_max_kept": self._max_kept, "_layers": OrderedDict(), "num_canonicalised": 0, "num_solved": 0}

    def solve(self, data: ProgramData, *, seconds: float = math.inf) -> ProgramSolution:
        """Solve a program.

        Args:
            data: What the program is about.
            seconds: Time limit for Clarabel.

        Raises:
            SolverError: If Clarabel does not return a solution.
            MissingDependencyError: If cvxpy or cvxpylayers is not installed.
        """
        padded = data.padded()
        settings: dict[str, Any] = dict(SOLVER_SETTINGS)
        if math.isfinite(seconds):
            settings["time_limit"] = max(seconds, 1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of inaccurate solutions: every point is judged by what it attains
            if fits_layer(padded.shape):
                found = _solve_layer(self._layer(padded.shape), padded, settings)
            else:
                found = _solve_once(padded, settings)
        self.num_solved += 1
        rows, _, multipliers = found
        if not all(bool(torch.isfinite(tensor).all()) for tensor in found):
            raise SolverError("The restricted program was not solved.", solver="Clarabel", solver_status="not finite")
        return ProgramSolution(
            coefficients=data.coefficients_from(rows[: data.shape.num_atoms]),
            dual_point=multipliers * data.dual_unit,
        )

    def _layer(self, shape: ProgramShape) -> Any:
        if shape not in self._layers:
            self._layers[shape] = _canonicalised(shape)
            self.num_canonicalised += 1
            while len(self._layers) > self._max_kept:
                self._layers.popitem(last=False)
        self._layers.move_to_end(shape)
        return self._layers[shape]


def _canonicalised(shape: ProgramShape) -> Any:
    cp = imported_cvxpy()
    parameters = [cp.Parameter(size, nonneg=sign) for size, sign in shape.parameter_shapes()]
    program, variables = _program(shape, parameters)
    return cone_layer(program, parameters, variables)


def _solve_layer(layer: Any, data: ProgramData, settings: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    rows, outputs, multipliers = solved_layer(layer, data.parameters(), settings)
    return rows, outputs, multipliers


def _solve_once(data: ProgramData, settings: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    cp = imported_cvxpy()
    program, variables = _program(data.shape, [tensor.detach().numpy() for tensor in data.parameters()])
    try:
        program.solve(solver=cp.CLARABEL, **settings)
    except cp.error.SolverError as error:
        raise SolverError("The restricted program was not solved.", solver="Clarabel", solver_status=str(error)) from error
    if any(variable.value is None for variable in variables):
        raise SolverError("The restricted program was not solved.", solver="Clarabel", solver_status=str(program.status))
    rows, outputs, multipliers = (torch.from_numpy(np.array(v.value, dtype=np.float64)).reshape(v.shape) for v in variables)
    return rows, outputs, multipliers


def _program(shape: ProgramShape, parameters: list[Any]) -> tuple[Any, list[Any]]:
    """Minimise ``loss(F) + weights' |rows of V|`` subject to ``F = A V + 1 b'``; V, F and the multipliers of the constraint."""
    cp = imported_cvxpy()
    atoms, weights, targets, *own = parameters
    rows = cp.Variable((shape.num_atoms, shape.num_outputs))
    outputs = cp.Variable((shape.num_samples, shape.num_outputs))
    combined = atoms @ rows
    if shape.output_bias:
        combined = combined + np.ones((shape.num_samples, 1)) @ cp.Variable((1, shape.num_outputs))
    fits = outputs == combined
    loss = loss_expression(shape.kind, outputs, targets, *own)
    lengths = cp.abs(rows)[:, 0] if shape.num_outputs == 1 else cp.norm(rows, 2, axis=1)
    return cp.Problem(cp.Minimize(loss + weights @ lengths), [fits]), [rows, outputs, fits.dual_variables[0]]
