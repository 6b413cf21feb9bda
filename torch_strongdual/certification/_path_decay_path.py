"""Certified optima for a sequence of strengths of the penalty."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from torch_strongdual._checks import check_positive_finite
from torch_strongdual.certification._dual_norm import max_path_decay
from torch_strongdual.certification._gather import gathered
from torch_strongdual.certification._optimize import Run, check_numbers, check_startable, optimize_problem
from torch_strongdual.certification._own_defaults import with_own_defaults
from torch_strongdual.certification._training.training_loop import TrainingLoop
from torch_strongdual.certification._working_branches import WorkingBranches
from torch_strongdual.certification.dual_solver import DualSolver
from torch_strongdual.certification.optimization_result import OptimizationResult, OptimizationStop
from torch_strongdual.certification.oracles import AbstractDualNormOracle
from torch_strongdual.certification.path_decay_table import PathDecayRow, PathDecayTable
from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.errors import InvalidInputError
from torch_strongdual.nn import ParallelNet, ParallelWeights

__all__ = ["path_decay_path"]

_FRACTIONS = (0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.09, 0.06)


@with_own_defaults
def path_decay_path(
    net: ParallelNet,
    inputs: Tensor | Iterable[Any],  # shape: (num_samples, in_features)
    targets: Tensor | None = None,  # shape: (num_samples, out_features) or as the loss takes them
    *,
    loss: nn.Module,
    fractions: Sequence[float] = _FRACTIONS,
    path_decays: Sequence[float] | None = None,
    rtol: float = 1e-3,
    time_budget: float = 60.0,
    oracle: AbstractDualNormOracle | None = None,
    progress: bool = False,
) -> PathDecayTable:
    r"""Optimise a network for a decreasing sequence of strengths, each from the solution of the one before.

    The dual norm does not depend on the strength. So the dual point of one strength, rescaled, is the first bound of the next,
    and the branches found and the oracle's preparation are shared.

    Args:
        net: Architecture, and where the first strength starts; not changed.
        inputs: As for :func:`optimize_to_certificate`.
        targets: As for :func:`optimize_to_certificate`.
        loss: As for :func:`certify`.
        fractions: Strengths as fractions of the lower bound of :func:`max_path_decay`, above zero.
        path_decays: The strengths themselves, in the units of the loss, instead of ``fractions``.
        rtol: Relative gap at which to stop, for each strength.
        time_budget: Seconds for each strength.
        oracle: As for :func:`certify`.
        progress: Whether to show progress bars.

    Returns:
        A :class:`PathDecayTable`, strongest first. Ctrl-C, once the first strength has begun, ends it with the strengths done
        so far, the last one as far as it got.

    Raises:
        InvalidInputError: If there is no strength, or one is not above zero (fractions of a limit that is zero are not); and
            as :func:`optimize_to_certificate`, as other errors.

    Example:
        >>> import torch
        >>> net = ParallelNet(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False), num_branches=1)
        >>> x, y = torch.eye(2), torch.tensor([[2.0], [-1.0]])
        >>> table = path_decay_path(net, x, y, loss=nn.MSELoss(), fractions=(0.8, 0.4))
        >>> [row.result.certificate.is_certified for row in table.rows]
        [True, True]
    """
    check_numbers(rtol, time_budget)
    inputs, targets = gathered(inputs, targets)
    check_startable(net, inputs)
    if path_decays is None:
        limit = max_path_decay(net, inputs, targets, loss=loss, rtol=1e-2, time_budget=time_budget, oracle=oracle).lower
        path_decays = [limit * fraction for fraction in _checked("fractions", fractions)]
    decays = sorted(set(_checked("path_decays", path_decays)), reverse=True)
    problem = TrainingProblem.from_model(net, inputs, targets, loss=loss, path_decay=decays[0])
    solver = DualSolver(problem, oracle)
    branches = WorkingBranches.of_network(ParallelWeights.from_module(net))
    runs: list[tuple[Run, OptimizationResult]] = []
    try:
        for path_decay in decays:
            at_strength = solver.at_path_decay(path_decay)
            run = Run(at_strength, branches, net, rtol=rtol, time_budget=time_budget, progress=progress)
            result = optimize_problem(run)
            runs.append((run, result))
            if result.stop is OptimizationStop.INTERRUPTED:
                break
            solver, branches = run.solver, run.loop.best
        return _table(runs)
    except KeyboardInterrupt:  # between two strengths
        if not runs:
            raise
        return _table(runs)


def _table(runs: Sequence[tuple[Run, OptimizationResult]]) -> PathDecayTable:
    return PathDecayTable(rows=tuple(_row(run.loop, result) for run, result in runs))


def _row(loop: TrainingLoop, result: OptimizationResult) -> PathDecayRow:
    problem = loop.problem
    return PathDecayRow(
        path_decay=problem.path_decay,
        loss=float(problem.loss.value(loop.best.outputs(problem))),
        penalty=float(loop.best.magnitudes().sum()),
        result=result,
    )


def _checked(name: str, values: Sequence[float]) -> list[float]:
    if not isinstance(values, Iterable):
        raise InvalidInputError(f"`{name}` is {values!r}; expected a sequence of numbers > 0.")
    values = [float(value) if hasattr(value, "__float__") else value for value in values]
    if not values:
        raise InvalidInputError(f"`{name}` is empty; expected at least one number > 0.")
    for index, value in enumerate(values):
        check_positive_finite(f"{name}[{index}]", value)
    return [float(value) for value in values]
