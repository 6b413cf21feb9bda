"""The optimal network of one output as a differentiable function, by a cone program over first layers (cvxpylayers)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from torch_strongdual.certification._activation_patterns import activation_patterns
from torch_strongdual.certification._derivatives.pattern_program import PatternProgram
from torch_strongdual.certification._restricted.scaled_loss import ScaledLoss
from torch_strongdual.certification._working_branches import WorkingBranches
from torch_strongdual.certification.differentiable_optimum import DifferentiableOptimum
from torch_strongdual.certification.oracles.row_space import RowSpace
from torch_strongdual.certification.training_problem import TrainingProblem

__all__ = ["pattern_optimum"]


def pattern_optimum(
    problem: TrainingProblem, branches: WorkingBranches, loss: ScaledLoss, strength: Tensor
) -> DifferentiableOptimum:
    """Solve the program within the patterns of the branches, and differentiate its solution.

    Args:
        problem: Of two-layer networks with one output.
        branches: A nearly optimal network, none of them zero.
        loss: The problem's, differentiable in its tensors.
        strength: The problem's path decay, differentiable, on the CPU.

    Raises:
        SolverError: If Clarabel does not return a solution.
        MissingDependencyError: If cvxpy or cvxpylayers is not installed.
    """
    space = RowSpace.of(problem.spec.branch_inputs(problem.inputs).numpy())
    chosen, program = _program(problem, branches, space)
    points, bias = program.solve(loss, strength)
    return DifferentiableOptimum(
        first_layers=points @ torch.from_numpy(space.basis).T,
        output_layers=chosen.weights[-1][:, :, 0].sign(),
        output_bias=bias if problem.spec.output_bias else None,
        spec=chosen.to_weights(problem).spec,
    )


def _program(problem: TrainingProblem, branches: WorkingBranches, space: RowSpace) -> tuple[WorkingBranches, PatternProgram]:
    """One branch for each pattern, gate and sign, and the program over them."""
    hidden = branches.weights[0][:, 0].numpy() @ space.basis
    signs = np.sign(branches.weights[-1][:, 0, 0].numpy())
    slopes = signs[:, None] * problem.loss.residual(branches.outputs(problem)).numpy().T
    slope = problem.spec.negative_slopes[0]
    patterns = activation_patterns(space.rows, hidden, slopes)
    sides = np.where(patterns, 1.0, -1.0) if slope != 1.0 else np.zeros(patterns.shape)
    gains = np.where(patterns, 1.0, slope)
    masks = problem.spec.gate_masks(problem.inputs)
    if masks is not None and branches.gates is not None:
        own = masks[branches.gates].numpy()
        gains, sides = gains * own, sides * own  # where a gate is closed any side will do
    keys = [(sign, gain.tobytes(), side.tobytes()) for sign, gain, side in zip(signs, gains, sides, strict=True)]
    founders = list({key: index for index, key in reversed(list(enumerate(keys)))}.values())[::-1]
    places = {keys[index]: place for place, index in enumerate(founders)}
    guess = np.zeros((len(founders), space.rank))
    np.add.at(guess, [places[key] for key in keys], hidden * branches.magnitudes().numpy()[:, None])
    features = (signs[:, None] * gains)[founders][:, :, None] * space.rows
    program = PatternProgram(
        features=features,
        sides=sides[founders],
        rows=space.rows,
        guess=guess,
        output_bias=problem.spec.output_bias,
    )
    return branches.kept(torch.tensor(founders)), program
