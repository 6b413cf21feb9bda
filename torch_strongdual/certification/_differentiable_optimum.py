"""Derivatives of the optimal network in the strength of the penalty and in the targets."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torch_strongdual._checks import check_finite
from torch_strongdual.certification._cell_refit import activation_patterns
from torch_strongdual.certification._pattern_program import PatternProgram
from torch_strongdual.certification._scaled_loss import ScaledLoss
from torch_strongdual.certification._working_branches import WorkingBranches
from torch_strongdual.certification.differentiable_optimum import DifferentiableOptimum
from torch_strongdual.certification.oracles.row_space import RowSpace
from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.errors import InvalidInputError, UnsupportedModelError
from torch_strongdual.nn import BranchSpec, ParallelNet, ParallelWeights

__all__ = ["differentiable_optimum"]

FloatArray = NDArray[np.float64]


def differentiable_optimum(
    net: ParallelNet,
    inputs: Tensor,  # shape: (num_samples, in_features)
    targets: Tensor,  # shape: (num_samples, 1)
    *,
    loss: nn.Module,
    path_decay: float | Tensor,
) -> DifferentiableOptimum:
    r"""Solve the training problem again with the activation patterns of an optimal network, so that autograd sees through it.

    With the pattern of every branch fixed, training is convex in the first layers times magnitudes, :math:`v_j`:

    .. math::
        \min_{v, b} \ell\Bigl(\sum_j s_j D_j X v_j + b\Bigr) + \beta \sum_j \|v_j\|
        \quad\text{subject to}\quad (2 D_j - I) X v_j \ge 0

    a cone program, solved by Clarabel and differentiated in :math:`\beta` and the targets by cvxpylayers. At an optimum, small
    changes of the data leave the patterns as they are, except at isolated points, where there is no derivative. So these are
    the derivatives of the global optimum if ``net`` is one, certified for example by :func:`optimize_to_certificate`; a network
    that is not is first moved to the optimum of its patterns.

    Args:
        net: An optimal network, two layers, one output.
        inputs: All training inputs.
        targets: All training targets; differentiable if they require gradients.
        loss: As for :func:`certify`.
        path_decay: Strength of the product penalty, above zero; differentiable if it is a tensor that requires gradients.

    Returns:
        A :class:`DifferentiableOptimum`, to be called on validation inputs.

    Raises:
        UnsupportedModelError: If the network has more than two layers, convolutions, or more than one output: the programs of
            vector outputs have nuclear norms, whose derivatives come out wrong from diffcp, behind cvxpylayers.
        InvalidInputError: If ``path_decay`` is not a number above zero, data are not finite, or no branch is alive.
        SolverError: If Clarabel does not return a solution.
        MissingDependencyError: If cvxpy or cvxpylayers is not installed.

    Example:
        >>> from torch_strongdual.losses import HalfSquaredLoss
        >>> net = ParallelNet(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False), num_branches=1)
        >>> with torch.no_grad():
        ...     _ = net.branch_weights()[0].copy_(torch.tensor([[[1.0, 0.0]]])), net.branch_weights()[1].fill_(1.5)
        >>> x, y = torch.eye(2), torch.tensor([[2.0], [0.0]])
        >>> path_decay = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        >>> optimum = differentiable_optimum(net, x, y, loss=HalfSquaredLoss(), path_decay=path_decay)
        >>> validation_loss = (optimum(torch.tensor([[2.0, 0.0]])) - 1.0).square().sum()  # (2 (2 - path_decay) - 1)^2
        >>> validation_loss.backward()
        >>> round(path_decay.grad.item(), 4)
        -8.0

    References:
        Agrawal, Amos, Barratt, Boyd, Diamond, Kolter, "Differentiable Convex Optimization Layers", NeurIPS 2019.
        https://arxiv.org/abs/1910.12430
    """
    strength = torch.as_tensor(path_decay, dtype=torch.float64)
    if strength.ndim:
        raise InvalidInputError(f"`path_decay` has shape {tuple(strength.shape)}; expected a number.")
    problem = TrainingProblem.from_model(net, inputs, targets, loss=loss, path_decay=strength.item())
    check_finite("inputs", problem.inputs)
    _check_supported(problem.spec)
    branches = WorkingBranches.of_network(ParallelWeights.from_module(net))
    if branches.number == 0:
        raise InvalidInputError("All branches of `net` are zero; expected an optimal network that is not.")
    space = RowSpace.of(problem.spec.branch_inputs(problem.inputs).numpy())
    chosen, program = _program(problem, branches, space)
    own_targets = targets.to("cpu", torch.float64).reshape(problem.loss.targets.shape) if targets.requires_grad else None
    points, bias = program.solve(ScaledLoss.of(problem.loss, own_targets), strength.cpu())
    weights = chosen.to_weights(problem)
    return DifferentiableOptimum(
        first_layers=points @ torch.from_numpy(space.basis).T,
        signs=chosen.weights[-1][:, 0, 0].sign(),
        output_bias=bias if problem.spec.output_bias else None,
        spec=weights.spec,
    )


def _check_supported(spec: BranchSpec) -> None:
    if spec.out_features > 1:
        raise UnsupportedModelError(
            f"{spec} has {spec.out_features} outputs; expected one. With several, the program behind the optimum has nuclear "
            "norms, whose derivatives come out wrong from diffcp."
        )
    if spec.num_layers != 2 or spec.patch_map is not None:
        raise UnsupportedModelError(f"Branches {spec}; expected two linear layers with one activation between them.")


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
