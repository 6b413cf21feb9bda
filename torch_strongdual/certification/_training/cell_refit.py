"""The part of training that is convex although it moves first layers: every branch within its own activation pattern.

Optimal first layers mostly lie on kinks, where some samples' hidden units are exactly zero and quasi-Newton steps crawl. With
the pattern of each branch fixed, ``loss + path_decay * sum_j ||a_j||`` over first layers ``a_j`` that keep to their patterns is
convex, and a cone program, solved by an interior point method to many digits, is a Newton step for it, kinks included.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from torch_strongdual.certification._activation_patterns import activation_patterns
from torch_strongdual.certification._training.cell_program import solved_cone_program
from torch_strongdual.certification._working_branches import WorkingBranches
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles.row_space import RowSpace, power_of_two_scale
from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.losses import HuberFamilyLoss, SoftmaxLoss

__all__ = ["has_cells", "refitted_in_cells"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_MAX_NUMBERS = 1200  # of all first layers together: the program has a dense Hessian of this size
_NEWTON_STEPS = 8
_DEAD = 1e-8


def has_cells(problem: TrainingProblem) -> bool:
    """Whether this is for such networks and data: two dense layers, one (leaky) ReLU, a smooth loss of uncoupled outputs."""
    spec, loss = problem.spec, problem.loss
    is_smooth = not isinstance(loss, SoftmaxLoss) and not (isinstance(loss, HuberFamilyLoss) and loss.width == 0.0)
    is_dense = spec.patch_map is None
    has_squares = 1e-100 < power_of_two_scale(problem.inputs.double().numpy()) < 1e100  # which the programs' Hessians hold
    return has_squares and is_smooth and is_dense and spec.num_layers == 2 and not spec.is_gated and not spec.is_linear


def refitted_in_cells(
    problem: TrainingProblem, branches: WorkingBranches, extra: WorkingBranches, *, rtol: float, deadline: Deadline
) -> WorkingBranches:
    """Optimise first layers and magnitudes within the activation patterns; output directions stay.

    Branches of equal pattern and output direction become one, those that come out as zero go. A branch that ends on a kink
    goes on in the pattern beyond it if the residual says so. The objective falls, or ``branches`` are returned.

    Args:
        problem: One that :func:`has_cells`.
        branches: The network.
        extra: Branches whose patterns may be used besides, of any norm.
        rtol: Relative decrease of the objective below which to stop.
        deadline: When to stop.
    """
    cells = _Cells.of(problem, branches, extra)
    if cells.number == 0 or cells.firsts.size > _MAX_NUMBERS:
        return branches
    # Of a quadratic loss the first program knows all of it; otherwise patterns it leaves unused may be needed later.
    offered = branches.kept(slice(0)) if _is_quadratic(problem) else branches.joined(extra)
    best, value = branches, branches.objective(problem)
    for _ in range(_NEWTON_STEPS if _is_quadratic(problem) else 3 * _NEWTON_STEPS):
        if deadline.expired or cells.number == 0:  # the last step may have left the output bias only
            break
        moved = cells.moved(problem, deadline)
        if moved is None:
            break
        reached = moved.objective(problem)
        gained = value - reached
        if gained > 0.0:
            best, value = moved, reached
        if gained <= rtol * abs(value):
            break
        cells = _Cells.of(problem, moved, offered)
    return best


def _is_quadratic(problem: TrainingProblem) -> bool:
    return isinstance(problem.loss, HuberFamilyLoss) and math.isinf(problem.loss.slope_bound)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Cells:
    """First layers times magnitudes in reduced coordinates, one a pattern and output direction.

    Args:
        space: Reduction of the inputs.
        firsts: a_j, shape (number, rank); zero for patterns that are only offered.
        guesses: Points inside the patterns, shape (number, rank).
        patterns: Shape (number, num_samples).
        directions: Unit output directions, shape (number, out_features).
        outputs: Of the network, shape (num_samples, out_features).
        template: For the way back.
    """

    space: RowSpace
    firsts: FloatArray
    guesses: FloatArray
    patterns: BoolArray
    directions: FloatArray
    outputs: torch.Tensor
    template: WorkingBranches

    @classmethod
    def of(cls, problem: TrainingProblem, branches: WorkingBranches, extra: WorkingBranches) -> _Cells:
        """Those of ``branches``, merged, and of ``extra``, at zero."""
        space = RowSpace.of(problem.spec.branch_inputs(problem.inputs).numpy())
        joined = branches.joined(extra).alive()
        hidden = joined.unit_hidden()[0][:, 0].numpy() @ space.basis
        last = joined.weights[-1][:, :, 0].numpy()
        directions = last / np.linalg.norm(last, axis=1, keepdims=True)
        magnitudes = joined.magnitudes().numpy() * (np.arange(joined.number) < branches.alive().number)
        outputs = branches.outputs(problem)
        slopes = problem.loss.residual(outputs).numpy() @ directions.T  # (n, number)
        patterns = activation_patterns(space.rows, hidden, slopes.T)
        keys = [
            (pattern.tobytes(), np.round(direction, 6).tobytes())
            for pattern, direction in zip(patterns, directions, strict=True)
        ]
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        chosen = sorted(first.values())
        place = {index: position for position, index in enumerate(chosen)}
        group = np.array([place[first[key]] for key in keys], dtype=np.int64)
        firsts = np.zeros((len(chosen), hidden.shape[1]))
        np.add.at(firsts, group, magnitudes[:, None] * hidden)
        return cls(
            space=space,
            firsts=firsts,
            guesses=np.where(firsts.any(axis=1, keepdims=True), firsts, hidden[chosen]),
            patterns=patterns[chosen],
            directions=directions[chosen],
            outputs=outputs,
            template=branches,
        )

    @property
    def number(self) -> int:
        """How many patterns."""
        return len(self.firsts)

    def moved(self, problem: TrainingProblem, deadline: Deadline) -> WorkingBranches | None:
        """After one Newton step with line search; ``None`` if the program is not solved or does not lower the objective."""
        hessian, linear, start = self._model(problem)
        rows = self.space.rows
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        normals = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
        unit = float(np.linalg.norm(self.firsts, axis=1).max(initial=0.0)) or 1.0
        value = abs(float(problem.loss.value(self.outputs))) + problem.path_decay * unit
        found = solved_cone_program(
            hessian * (unit * unit / value),
            linear * (unit / value),
            problem.path_decay * unit / value,
            normals,
            self.patterns,
            self.guesses,
            deadline=deadline,
        )
        if found is None:
            return None
        before = self._network(start).objective(problem)
        for length in (1.0, 0.5, 0.25, 0.1, 0.02):
            network = self._network(start + length * (unit * found - start))
            if network.objective(problem) < before:
                return network
        return None

    def _model(self, problem: TrainingProblem) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Hessian and linear term of the loss to second order, as a function of all first layers and the bias; and these."""
        slope = next(a.negative_slope for a in problem.spec.activations if not a.is_identity)
        gates = np.where(self.patterns, 1.0, slope)
        features = gates[:, :, None] * self.space.rows  # (number, n, rank)
        wide = features.transpose(1, 0, 2).reshape(len(self.space.rows), -1)
        residual, curvature = problem.loss.residual(self.outputs).numpy(), _curvature(problem, self.outputs)
        rank, c = self.firsts.shape[1], self.directions.shape[1]
        start = self.firsts.ravel()
        bias = self.template.output_bias
        size = len(start) + (0 if bias is None else c)
        hessian, linear = np.zeros((size, size)), np.zeros(size)
        for k in range(c):
            block = wide * np.repeat(self.directions[:, k], rank)
            if bias is not None:
                block = np.hstack([block, np.tile(np.eye(c)[k], (len(block), 1))])
            hessian += block.T @ (curvature[:, k : k + 1] * block)
            linear -= block.T @ residual[:, k]
        start = start if bias is None else np.concatenate([start, bias.numpy()])
        return hessian, linear - hessian @ start, start

    def _network(self, point: FloatArray) -> WorkingBranches:
        firsts = point[: self.firsts.size].reshape(self.firsts.shape)
        sizes = np.linalg.norm(firsts, axis=1)
        live = sizes > _DEAD * sizes.max(initial=0.0)
        first = torch.from_numpy((firsts[live] / np.sqrt(sizes[live])[:, None]) @ self.space.basis.T)
        last = torch.from_numpy(self.directions[live] * np.sqrt(sizes[live])[:, None])
        bias = None if self.template.output_bias is None else torch.from_numpy(point[self.firsts.size :].copy())
        return dataclasses.replace(self.template, weights=(first[:, None], last[:, :, None]), output_bias=bias)


def _curvature(problem: TrainingProblem, outputs: torch.Tensor) -> FloatArray:
    """Of a quadratic model of the loss, one number an output: exact for the squared loss, above the loss for Huber losses."""
    loss = problem.loss
    if isinstance(loss, HuberFamilyLoss):
        error = loss.targets - outputs
        far = torch.where(error == 0.0, 1.0, error.abs())
        secant = torch.where(error == 0.0, 1.0 / (loss.normalizer * loss.width), loss.residual(outputs).abs() / far)
        return np.asarray(secant.numpy(), dtype=np.float64)
    step = 1e-4
    change = (loss.residual(outputs - step) - loss.residual(outputs + step)).numpy()
    curvature = np.maximum(change / (2.0 * step), 0.0)
    raised: FloatArray = np.maximum(curvature, 1e-3 * curvature.max())  # far outputs of a logistic loss have next to none
    return raised
