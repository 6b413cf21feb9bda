"""CVXPY and cvxpylayers, imported when used, with Clarabel behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from torch_strongdual.errors import MissingDependencyError, SolverError

__all__ = ["SOLVER_SETTINGS", "cone_layer", "imported_cvxpy", "loss_expression", "solved_layer"]

#: Tolerances of Clarabel, which ends with what it can reach.
SOLVER_SETTINGS: Mapping[str, float] = {f"tol_{name}": 1e-10 for name in ("gap_abs", "gap_rel", "feas")}


def imported_cvxpy() -> Any:
    """The module.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        import cvxpy
    except ImportError as error:
        raise MissingDependencyError("cvxpy", purpose="Differentiating the optimum") from error
    return cvxpy


def cone_layer(program: Any, parameters: Sequence[Any], variables: Sequence[Any]) -> Any:
    """Canonicalise a CVXPY problem into a differentiable function of its parameters.

    Raises:
        MissingDependencyError: If cvxpylayers is not installed.
    """
    try:
        from cvxpylayers.torch import CvxpyLayer
    except ImportError as error:
        raise MissingDependencyError("cvxpylayers", purpose="Differentiating the optimum") from error
    return CvxpyLayer(program, list(parameters), list(variables))


def solved_layer(layer: Any, parameters: Sequence[Tensor], settings: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Values of the variables of a :func:`cone_layer`.

    Raises:
        SolverError: If Clarabel does not return a solution.
    """
    # CvxpyLayer(solver="CLARABEL") raises in cvxpylayers 1.2: the solver is named in each call.
    try:
        return tuple(layer(*parameters, solver_args={"solve_method": "Clarabel", **settings}))
    except Exception as error:  # diffcp's own SolverError; RuntimeError and ValueError of matrices it cannot take
        raise SolverError("The program was not solved.", solver="Clarabel", solver_status=str(error)) from error


def loss_expression(kind: str, outputs: Any, targets: Any, *own: Any) -> Any:
    """The scaled loss in CVXPY.

    Args:
        kind: See :class:`~torch_strongdual.certification._restricted.scaled_loss.ScaledLoss`.
        outputs: Expression of shape ``(num_samples, num_outputs)``.
        targets: Parameter or array.
        *own: The loss's own parameter, if it has one.
    """
    cp = imported_cvxpy()
    if kind == "squared":
        return 0.5 * cp.sum_squares(outputs - targets)
    if kind == "huber":
        outliers = cp.Variable(outputs.shape)
        return 0.5 * cp.sum_squares(outputs - targets - outliers) + own[0] * cp.sum(cp.abs(outliers))
    if kind == "absolute":
        return cp.sum(cp.abs(outputs - targets))
    if kind == "logistic":
        return cp.sum(cp.multiply(own[0], cp.logistic(outputs))) - cp.sum(cp.multiply(targets, outputs))
    return cp.sum(cp.multiply(own[0], cp.log_sum_exp(outputs, axis=1))) - cp.sum(cp.multiply(targets, outputs))
