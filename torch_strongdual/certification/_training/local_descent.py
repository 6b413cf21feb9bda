"""Local optimisation of all weights at once: L-BFGS on the power form of the penalty."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification._training.weight_objective import ValueAndGradient, weight_objective
from torch_strongdual.certification._working_branches import WorkingBranches
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.losses import AbstractDualLoss

__all__ = ["descend"]

FloatArray = NDArray[np.float64]

_APART, _APART_WHILE_STEEP = 1.15, 2.0  # ratio of the numbers of evaluations; no times, so that a run can be repeated
_STEEP = 1e-3  # part by which one evaluation lowers the objective: a much better one is about to come
_WORTH_REPORTING = 1e-4  # of the objective


class _OutOfTime(Exception):  # noqa: N818  (control flow, not an error)
    pass


def descend(
    problem: TrainingProblem,
    branches: WorkingBranches,
    *,
    deadline: Deadline,
    max_iterations: int,
    rtol: float = 1e-14,
    loss: AbstractDualLoss | None = None,
    report: Callable[[WorkingBranches], None] = lambda branches: None,
) -> WorkingBranches:
    r"""Lower ``loss + path_decay * power penalty`` from a balanced start, where it equals the product form.

    The power form is smooth and at least the product form, so the product-form objective falls too.

    Args:
        problem: What is minimised.
        branches: Where to start.
        deadline: When to stop; the best point so far is returned.
        max_iterations: Of L-BFGS.
        rtol: Stop when an iteration lowers the objective by less than this part of where it started.
        loss: A smooth loss instead of the problem's.
        report: Called now and then with the best so far, at the same evaluations in each run.
    """
    if branches.number == 0:
        return branches
    start = branches.balanced()
    tensors = [*start.weights, *([] if start.output_bias is None else [start.output_bias])]

    def restored(flat: FloatArray) -> WorkingBranches:
        pieces = _split(torch.from_numpy(flat.copy()), tensors)
        bias = pieces[-1] if start.output_bias is not None else None
        return dataclasses.replace(start, weights=tuple(pieces[: len(start.weights)]), output_bias=bias).alive()

    search = _Search(weight_objective(problem, start, problem.loss if loss is None else loss), tensors, deadline)
    search.minimise({"maxiter": max_iterations, "ftol": rtol}, lambda flat: report(restored(flat)))
    return restored(search.best)


class _Search:
    """SciPy's L-BFGS over flattened tensors; keeps the best point.

    Args:
        objective: What is minimised.
        tensors: Where to start.
        deadline: When to stop.
    """

    def __init__(self, objective: ValueAndGradient, tensors: list[Tensor], deadline: Deadline) -> None:
        self._objective, self._tensors, self._deadline = objective, tensors, deadline
        self.best: FloatArray = torch.cat([tensor.flatten() for tensor in tensors]).numpy()
        self._value, self._count = math.inf, 0
        self._reported, self._reported_at = math.inf, 3

    def minimise(self, options: dict[str, float], report: Callable[[FloatArray], None]) -> None:
        """Run to the end, or until time is up."""
        from scipy.optimize import minimize

        unit = 0.0  # the solver's tolerances are absolute: parts of the first value

        def evaluate(flat: FloatArray) -> tuple[float, FloatArray]:
            nonlocal unit
            if self._deadline.expired:
                raise _OutOfTime
            value, gradients = self._objective(_split(torch.from_numpy(flat), self._tensors))
            unit = unit or abs(value) or 1.0
            before, self._count = self._value, self._count + 1
            if value < before:
                self.best, self._value = flat.copy(), value
            self._report_if_due(before, report)
            return value / unit, torch.cat([gradient.flatten() for gradient in gradients]).numpy() / unit

        limits = {**options, "maxfun": 4 * options["maxiter"], "maxcor": 30, "gtol": 0.0}
        with contextlib.suppress(_OutOfTime):
            minimize(evaluate, self.best.copy(), jac=True, method="L-BFGS-B", options=limits)

    def _report_if_due(self, before: float, report: Callable[[FloatArray], None]) -> None:
        is_steep = self._value < (1.0 - _STEEP) * before
        if self._count < (_APART_WHILE_STEEP if is_steep else _APART) * self._reported_at:
            return
        if self._value < self._reported - _WORTH_REPORTING * abs(self._value):
            self._reported, self._reported_at = self._value, self._count
            report(self.best)


def _split(flat: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    pieces = torch.split_with_sizes(flat, [tensor.numel() for tensor in tensors])
    return [piece.reshape(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]
