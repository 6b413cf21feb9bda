"""Training to a certified global optimum, in one call."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from torch_strongdual._checks import check_finite, check_positive, check_positive_finite
from torch_strongdual.certification._gather import gathered
from torch_strongdual.certification._own_defaults import with_own_defaults
from torch_strongdual.certification._training.progress_bar import progress_bar
from torch_strongdual.certification._training.training_loop import TrainingLoop
from torch_strongdual.certification._working_branches import WorkingBranches
from torch_strongdual.certification.certificate import Certificate, CertificateStatus
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.dual_solver import DualSolver
from torch_strongdual.certification.optimization_result import OptimizationRecord, OptimizationResult, OptimizationStop
from torch_strongdual.certification.oracles import AbstractDualNormOracle
from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.errors import UnsupportedModelError
from torch_strongdual.nn import ParallelNet, ParallelWeights

__all__ = ["Run", "check_numbers", "check_startable", "optimize_problem", "optimize_to_certificate"]


@with_own_defaults
def optimize_to_certificate(
    net: ParallelNet,
    inputs: Tensor | Iterable[Any],  # shape: (num_samples, in_features)
    targets: Tensor | None = None,  # shape: (num_samples, out_features) or as the loss takes them
    *,
    loss: nn.Module,
    path_decay: float,
    rtol: float = 1e-3,
    time_budget: float = 60.0,
    oracle: AbstractDualNormOracle | None = None,
    progress: bool = False,
) -> OptimizationResult:
    r"""Train a parallel network until it is proven globally optimal, or the time is up.

    Minimises ``loss(f(X), Y) + path_decay * sum_k prod_l ||W_{l,k}||_F`` over the weights *and the number* of branches, on all
    data at once. Rounds of: L-BFGS on all weights; merging of equal branches; a convex refit of the last layers, which
    removes branches; a proven bound, which hands back the branches that lower the objective most; these are added by
    line search, and the next round starts. So a local minimum is left wherever the oracle finds a way out, and proven
    to be global where there is none.

    For the absolute loss L-BFGS runs on Huber losses of shrinking width, and convergence comes from the refit over the branches
    found so far (Clarabel, or alternating directions without it, with all samples: for some thousands of them at most).

    Args:
        net: Where to start, and the architecture; not changed. Few branches suffice: as many as needed are added.
        inputs: Inputs as the network takes them, or an iterable of ``(inputs, targets)`` batches such as a data loader.
        targets: Targets as the loss takes them; ``None`` with batches.
        loss: See :func:`certify`.
        path_decay: Strength of the penalty, above zero, in the units of the loss.
        rtol: Relative gap at which to stop.
        time_budget: Seconds, after the data are reduced (and code compiled, on first use).
        oracle: Bounds the dual norm; default :class:`~torch_strongdual.certification.oracles.AutoOracle`.
        progress: Whether to show a progress bar with the gap, if tqdm is installed.

    Returns:
        An :class:`OptimizationResult`: the best network found, never worse than ``net`` up to rounding in the dtype of
        ``net``, with its certificate. Its branches are balanced and use one unit of their last hidden layer each (the
        others are zero); there may be more of them than ``net`` has, see :func:`reduce_branches`. A gated network keeps a
        branch, zero if need be, of each gate, since the certificate speaks of these; ``prune_()`` removes them. The network
        is on the CPU, in the dtype of ``net`` where rounding to it costs less than one percent of ``rtol``, otherwise in
        float64. Ctrl-C ends it as the end of the time does, at any moment once its arguments are checked; a second one while
        the result is put together ends the call.

    Raises:
        UnsupportedModelError: If ``net`` is not a ParallelNet, or has no dual here.
        UnsupportedLossError: If the loss, or an option of it, has no conjugate here.
        InvalidInputError: If data are empty or of the wrong kind, labels outside the classes, a number out of range, or
            inputs, targets or weights not finite.
        ShapeError: If inputs, targets and network do not fit together.
        SoundnessError: If a bound comes out above an attained value: a bug, please report it.

    Example:
        >>> from torch_strongdual.losses import HalfSquaredLoss
        >>> net = ParallelNet(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False), num_branches=1)
        >>> x, y = torch.eye(2), torch.tensor([[2.0], [-1.0]])
        >>> result = optimize_to_certificate(net, x, y, loss=HalfSquaredLoss(), path_decay=0.5)
        >>> result.certificate.is_certified, round(result.certificate.primal_value, 2)
        (True, 1.25)

    References:
        Wang, Ergen, Pilanci, "Parallel Deep Neural Networks Have Zero Duality Gap", ICLR 2023. https://arxiv.org/abs/2110.06482
    """
    check_numbers(rtol, time_budget)
    inputs, targets = gathered(inputs, targets)
    check_startable(net, inputs)
    problem = TrainingProblem.from_model(net, inputs, targets, loss=loss, path_decay=path_decay)
    solver = DualSolver(problem, oracle)
    branches = WorkingBranches.of_network(ParallelWeights.from_module(net))
    return optimize_problem(Run(solver, branches, net, rtol=rtol, time_budget=time_budget, progress=progress))


def check_numbers(rtol: float, time_budget: float) -> None:
    """Raise InvalidInputError unless both are above zero, and ``rtol`` finite."""
    check_positive_finite("rtol", rtol)
    check_positive("time_budget", time_budget)


def check_startable(net: object, inputs: Tensor) -> None:
    """Raise unless ``net`` can grow, and its weights and ``inputs`` are finite."""
    if not isinstance(net, ParallelNet):
        raise UnsupportedModelError(
            f"`net` is a {type(net).__name__}; expected a ParallelNet, to which branches can be added. "
            "ParallelNet.from_sequential makes one."
        )
    net.path_param_groups(path_decay=0.0)  # refuses weights that are computed from other parameters, before any work
    check_finite("inputs", inputs)
    for name, parameter in net.named_parameters():
        check_finite(name, parameter.detach())


class Run:
    """One optimisation, from the network it starts from to the one it returns.

    Args:
        solver: Of the problem.
        start: Branches to start from.
        net: Template of the network returned, whose gates are those of the problem, in order.
        rtol: As for :func:`optimize_to_certificate`.
        time_budget: As for :func:`optimize_to_certificate`.
        progress: As for :func:`optimize_to_certificate`.
    """

    def __init__(
        self, solver: DualSolver, start: WorkingBranches, net: ParallelNet, *, rtol: float, time_budget: float, progress: bool
    ) -> None:
        self.solver, self.start, self.net = solver, start, net
        self.rtol, self.time_budget, self.progress = rtol, time_budget, progress
        self._loop: TrainingLoop | None = None

    @property
    def loop(self) -> TrainingLoop:
        """Holds the best branches; not begun if it was not yet."""
        if self._loop is None:
            self._loop = self._new_loop(lambda record: None)
        return self._loop

    def to_its_end(self) -> OptimizationResult:
        """The loop, and the network it gives."""
        self.solver.prepare()
        with progress_bar(self.progress, self.rtol) as report:
            self._loop = self._new_loop(report)
            stop = self._loop.run()
        return self.result(stop)

    def result(self, stop: OptimizationStop) -> OptimizationResult:
        """Where the loop stands, as a network."""
        best, certificate = _materialised(self.loop, self.net)
        if stop is OptimizationStop.TIME and not certificate.is_certified:
            certificate = dataclasses.replace(certificate, status=CertificateStatus.BUDGET_EXHAUSTED)
        return OptimizationResult(net=best, certificate=certificate, history=tuple(self.loop.history), stop=stop)

    def _new_loop(self, report: Callable[[OptimizationRecord], None]) -> TrainingLoop:
        deadline = Deadline(self.time_budget)
        return TrainingLoop(self.solver, self.start, rtol=self.rtol, deadline=deadline, report=report)


def optimize_problem(run: Run) -> OptimizationResult:
    """Carry it out; Ctrl-C, whenever it comes, gives the best network found until then, a second one nothing."""
    try:
        return run.to_its_end()
    except KeyboardInterrupt:
        return run.result(OptimizationStop.INTERRUPTED)


def _materialised(loop: TrainingLoop, net: ParallelNet) -> tuple[ParallelNet, Certificate]:
    """The best network in the dtype of ``net`` if that costs next to nothing, else in float64; with its certificate."""
    solver, rtol = loop.solver, loop.rtol
    dtype = net.branch_weights()[0].dtype
    template = copy.deepcopy(net).cpu()
    exact = loop.best.to_net(copy.deepcopy(template).to(torch.float64))
    certificate = solver.assess(ParallelWeights.from_module(exact), rtol=rtol)
    if dtype == torch.float64:
        return exact, certificate
    rounded = copy.deepcopy(exact).to(dtype)
    of_rounded = solver.assess(ParallelWeights.from_module(rounded), rtol=rtol)
    cost = of_rounded.primal_value - certificate.primal_value
    if of_rounded.status is certificate.status and cost <= 0.01 * rtol * abs(certificate.scale):
        return rounded, of_rounded
    return exact, certificate
