"""Derivatives of the optimal network in the strength of the penalty and in the targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torch_strongdual._checks import check_finite
from torch_strongdual.certification._derivatives.factor_optimum import factor_optimum
from torch_strongdual.certification._derivatives.pattern_optimum import pattern_optimum
from torch_strongdual.certification._own_defaults import with_own_defaults
from torch_strongdual.certification._restricted.scaled_loss import ScaledLoss
from torch_strongdual.certification._working_branches import WorkingBranches
from torch_strongdual.certification.differentiable_optimum import DifferentiableOptimum
from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.errors import InvalidInputError, UnsupportedModelError
from torch_strongdual.losses import SoftmaxLoss
from torch_strongdual.losses._class_targets import class_targets
from torch_strongdual.nn import BranchSpec, ParallelNet, ParallelWeights

__all__ = ["differentiable_optimum"]


@with_own_defaults
def differentiable_optimum(
    net: ParallelNet,
    inputs: Tensor,  # shape: (num_samples, in_features)
    targets: Tensor,  # shape: (num_samples, out_features) or as the loss takes them
    *,
    loss: nn.Module,
    path_decay: float | Tensor,
) -> DifferentiableOptimum:
    r"""Find the optimal network with the activation patterns of a given one, so that autograd sees through it.

    With the pattern of every branch fixed and one output, training is convex in the first layers times magnitudes, :math:`v_j`:

    .. math::
        \min_{v, b} \ell\Bigl(\sum_j s_j D_j X v_j + b\Bigr) + \beta \sum_j \|v_j\|
        \quad\text{subject to}\quad (2 D_j - I) X v_j \ge 0

    a cone program, solved by Clarabel and differentiated in :math:`\beta` and the targets by cvxpylayers. With several outputs
    the layers :math:`u_j, g_j` themselves are moved by Newton's method, on the kinks where optimal first layers lie, to a
    stationary point of

    .. math::
        \ell\Bigl(\sum_j D_j X u_j g_j' + b\Bigr) + \frac{\beta}{2} \sum_j \|u_j\|^2 + \|g_j\|^2

    and differentiated by the implicit function theorem. At an optimum, small changes of the data leave the patterns as they
    are, except at isolated points, where there is no derivative. So these are the derivatives of the global optimum if ``net``
    is one, certified for example by :func:`optimize_to_certificate`; a network that is not is first moved to the optimum of its
    patterns (one output), or to a local optimum with no larger an objective.

    Args:
        net: An optimal network of two layers.
        inputs: All training inputs.
        targets: All training targets; differentiable if they require gradients.
        loss: As for :func:`certify`; with several outputs any but the absolute loss.
        path_decay: Strength of the product penalty, above zero; differentiable if it is a tensor that requires gradients.

    Returns:
        A :class:`DifferentiableOptimum`, to be called on validation inputs. First derivatives only.

    Raises:
        UnsupportedModelError: If the network has more than two layers, or convolutions.
        UnsupportedLossError: If the loss has no conjugate here; with several outputs also for the absolute loss.
        InvalidInputError: If ``path_decay`` is not a number above zero, data are not finite, or no branch is alive.
        NotDifferentiableError: With several outputs, if the optimum has no derivative; the message says why.
        SolverError: If Clarabel does not return a solution, or Newton's method does not reach a stationary point.
        MissingDependencyError: With one output, if cvxpy or cvxpylayers is not installed.

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
        Fiacco, "Introduction to Sensitivity and Stability Analysis in Nonlinear Programming", Academic Press 1983.
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
    scaled = ScaledLoss.of(problem.loss, _own_targets(problem, targets, loss) if targets.requires_grad else None)
    optimum = pattern_optimum if problem.spec.out_features == 1 else factor_optimum
    return optimum(problem, branches, scaled, strength.cpu())


def _check_supported(spec: BranchSpec) -> None:
    if spec.num_layers != 2 or spec.patch_map is not None:
        raise UnsupportedModelError(f"Branches {spec}; expected two linear layers with one activation between them.")


def _own_targets(problem: TrainingProblem, targets: Tensor, loss: Any) -> Tensor:
    """As the loss has them, as a function of those given."""
    own = targets.to("cpu", torch.float64)
    if not isinstance(problem.loss, SoftmaxLoss):
        return own.reshape(problem.loss.targets.shape)
    return class_targets(
        own,
        num_classes=problem.spec.out_features,
        weight=None if loss.weight is None else loss.weight.cpu(),
        label_smoothing=float(loss.label_smoothing),
        ignore_index=int(loss.ignore_index),
    ).rows
