"""The dual norm itself, for those who want the number rather than a certificate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from torch_strongdual._checks import check_floating, check_in, check_positive, check_shape
from torch_strongdual.certification._gather import gathered
from torch_strongdual.certification._null_subgradients import NullSubgradients
from torch_strongdual.certification._own_defaults import with_own_defaults
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.dual_norm_bound import DualNormBound
from torch_strongdual.certification.oracles import AbstractDualNormOracle, BoundRequest
from torch_strongdual.certification.oracles.auto_oracle import oracle_or_default
from torch_strongdual.certification.training_problem import CERTIFIED_PENALTIES, TrainingProblem
from torch_strongdual.errors import InvalidInputError, UnsupportedModelError
from torch_strongdual.nn import BranchSpec, branch_spec_of

__all__ = ["dual_norm_bound", "max_path_decay"]


@with_own_defaults
def dual_norm_bound(
    branch: nn.Module,
    inputs: Tensor,  # shape: (num_samples, in_features)
    dual_point: Tensor,  # shape: (num_samples,) or (num_samples, out_features)
    *,
    penalty: str = "product",
    rtol: float = 1e-2,
    time_budget: float = 60.0,
    oracle: AbstractDualNormOracle | None = None,
) -> DualNormBound:
    r"""Two-sided bounds on the dual norm :math:`\kappa(\Lambda) = \max \|\Lambda' \phi(X)\|_2` over branches of unit norm.

    Args:
        branch: A :class:`~torch_strongdual.nn.ParallelNet`, or an ``nn.Sequential`` (one branch); only its architecture counts.
        inputs: Inputs as the branch takes them.
        dual_point: Any point; the number of columns must be that of the outputs.
        penalty: The norm of a branch: ``"product"`` (``"power"`` has the same), or ``"l2_path"``.
        rtol: Relative distance of the two bounds at which to stop.
        time_budget: Seconds.
        oracle: Default :class:`~torch_strongdual.certification.oracles.AutoOracle`.

    Returns:
        Bounds in the units of ``dual_point`` times ``inputs``; the upper one is proven in floating point.

    Raises:
        UnsupportedModelError: If the oracle does not bound this architecture.
        ShapeError: If shapes do not fit.

    Example:
        >>> branch = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
        >>> round(dual_norm_bound(branch, torch.eye(2), torch.tensor([3.0, 4.0])).upper, 6)
        5.0
    """
    check_in("penalty", penalty, CERTIFIED_PENALTIES)
    check_positive("rtol", rtol)
    check_positive("time_budget", time_budget)
    for name, value in (("inputs", inputs), ("dual_point", dual_point)):
        if not isinstance(value, Tensor):
            raise InvalidInputError(f"`{name}` is {type(value).__name__}; expected a tensor.")
    inputs, dual_point = gathered(inputs, dual_point)
    check_floating("dual_point", dual_point)
    spec = branch_spec_of(branch)
    if spec.patch_map is not None and penalty == "l2_path":
        raise UnsupportedModelError(f"The 'l2_path' penalty is for linear layers, and {spec} has a convolution; use 'product'.")
    point = dual_point[:, None] if dual_point.ndim == 1 else dual_point
    check_shape("dual_point", point, (inputs.shape[0], spec.out_features), "one row a sample, one column an output")
    chosen = oracle_or_default(oracle)
    state = chosen.init(spec, inputs)
    found = chosen.bound(state, point.detach().to(torch.float64), BoundRequest(rtol=rtol, deadline=Deadline(time_budget)))
    return _in_penalty(found, spec, penalty)


@with_own_defaults
def max_path_decay(
    model: nn.Module,
    inputs: Tensor | Iterable[Any],
    targets: Tensor | None = None,
    *,
    loss: nn.Module,
    penalty: str = "product",
    rtol: float = 1e-3,
    time_budget: float = 60.0,
    oracle: AbstractDualNormOracle | None = None,
) -> DualNormBound:
    r"""The path decay above which the zero net is optimal: the dual norm of the zero net's residual, output bias fitted.

    Strengths are best chosen as a fraction of it, since it carries the units of data and loss.

    Under the absolute loss that residual is not unique where an error of the zero net is zero (the median is a target, or
    targets repeat): then it is the smallest dual norm of all of them, found by cutting planes.

    Args:
        model: As for :func:`certify`; only its architecture counts.
        inputs: As for :func:`certify`.
        targets: As for :func:`certify`.
        loss: As for :func:`certify`.
        penalty: As for :func:`certify`.
        rtol: Relative distance of the two bounds at which to stop.
        time_budget: Seconds.
        oracle: As for :func:`certify`.

    Returns:
        Bounds on it: at ``upper`` and above the zero net is optimal, below ``lower`` it is not.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
        >>> bound = max_path_decay(net, torch.eye(2), torch.tensor([[3.0], [4.0]]), loss=nn.MSELoss(reduction="sum"))
        >>> round(bound.upper, 6)
        10.0
    """
    inputs, targets = gathered(inputs, targets)
    problem = TrainingProblem.from_model(model, inputs, targets, loss=loss, path_decay=1.0, penalty=penalty)
    subgradients = NullSubgradients.of(problem)
    if subgradients is None:
        candidate = problem.dual_candidate(torch.zeros_like(problem.loss.targets))
        return dual_norm_bound(model, inputs, candidate, penalty=penalty, rtol=rtol, time_budget=time_budget, oracle=oracle)
    check_positive("rtol", rtol)
    check_positive("time_budget", time_budget)
    chosen = oracle_or_default(oracle)
    found = subgradients.least_dual_norm(chosen, rtol=rtol, deadline=Deadline(time_budget))
    return _in_penalty(found, problem.spec, penalty)


def _in_penalty(found: DualNormBound, spec: BranchSpec, penalty: str) -> DualNormBound:
    """Bounds for the product form as bounds for ``penalty``."""
    if penalty != "l2_path":
        return found
    factor = spec.l2_path_factor * (1.0 + 2.0**-50)
    # With two layers a branch of h equal units attains the factor; deeper ones may not, so only the upper bound carries over.
    lower = spec.l2_path_factor * found.lower if spec.num_layers == 2 else found.lower
    return DualNormBound(upper=factor * found.upper, lower=lower, witnesses=found.witnesses, stats=found.stats)
