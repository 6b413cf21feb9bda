"""Solving the dual over a whole training run: the best bound so far, and branches that can still lower the objective."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from torch_strongdual._checks import check_positive_finite
from torch_strongdual.certification._dual.dual_state import DualState
from torch_strongdual.certification._dual.open_reason import non_finite_reason
from torch_strongdual.certification._dual.problem_identity import ProblemIdentity
from torch_strongdual.certification._dual.solver_run import SolverRun
from torch_strongdual.certification._own_defaults import with_own_defaults
from torch_strongdual.certification.certificate import SMALLEST_GAP, Certificate, CertificateStatus, DualBound
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.dual_norm_bound import Witness
from torch_strongdual.certification.oracles import AbstractDualNormOracle
from torch_strongdual.certification.oracles.auto_oracle import oracle_or_default
from torch_strongdual.certification.training_problem import PrimalValue, TrainingProblem
from torch_strongdual.errors import InvalidInputError, UnsupportedModelError
from torch_strongdual.functional._row_blocks import all_finite
from torch_strongdual.nn import ParallelWeights

__all__ = ["DualSolver"]

_MAX_ROUNDS = 40
_NOTHING = 2.0**-52  # of the objective of outputs that are zero


class DualSolver:
    """Proves lower bounds on the optimum of one :class:`TrainingProblem`, and remembers the best.

    Each :meth:`step` starts from the residual of the network, scaled until it is dual feasible. If that leaves a gap, column
    generation solves the dual: the restricted dual over the network's own branches and the witnesses found so far gives
    a point, an oracle bounds its dual norm and hands back the branches that violate it most, which join the set. Where the
    oracle's bound is what is loose, points chosen together with their relaxed dual norm come first, for a few
    hundred samples. Proven points are kept, and combinations of them bounded without an oracle. Branches that carry no
    weight for several calls leave.

    The bound belongs to the problem, not to the weights, so it never gets worse from step to step. So does
    ``attainable``, the best objective of any network seen, be it trained or put together from the branches found: when the two
    meet, the dual is solved, and what gap is left is the network's own.

    Args:
        problem: What is trained.
        oracle: Bounds the dual norm; default :class:`AutoOracle`.

    Raises:
        UnsupportedModelError: If the oracle cannot bound branches of this architecture.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torch_strongdual.nn import ParallelNet
        >>> net = ParallelNet(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False), num_branches=3)
        >>> x, y = torch.eye(2), torch.tensor([[2.0], [0.0]])
        >>> problem = TrainingProblem.from_model(net, x, y, loss=nn.MSELoss(), path_decay=0.5)
        >>> certificate = DualSolver(problem).step(ParallelWeights.from_module(net), rtol=1e-3, deadline=Deadline(10.0))
        >>> 0.87 < certificate.dual_bound <= 0.875  # the optimum is 7/8
        True
    """

    def __init__(self, problem: TrainingProblem, oracle: AbstractDualNormOracle | None = None) -> None:
        self.problem = problem
        self.oracle = oracle_or_default(oracle)
        if (reason := self.oracle.supports(problem.spec)) is not None:
            raise UnsupportedModelError(f"{type(self.oracle).__name__} cannot certify {problem.spec}: {reason}.")
        self._identity = ProblemIdentity(problem)
        #: What is known so far; for its parts see :class:`DualState`.
        self.state = DualState(problem, self.oracle)

    @property
    def best(self) -> DualBound:
        """The largest lower bound proven so far; vacuous at first."""
        return self.state.best

    @property
    def attainable(self) -> float:
        """The smallest objective of any network seen or put together, ``inf`` at first."""
        return self.state.attainable

    @property
    def witnesses(self) -> tuple[Witness, ...]:
        """Unit branches found so far, kept as atoms of the restricted dual."""
        return self.state.atoms.witnesses

    @with_own_defaults
    def at_path_decay(self, path_decay: float) -> DualSolver:
        """A solver of the same problem at another strength, with what carries over.

        The dual norm belongs to data and architecture: the oracle's state is shared, branches found so far are kept, and the
        best dual point, rescaled until it is feasible, is the first bound.

        Args:
            path_decay: Above zero, finite.

        Raises:
            InvalidInputError: If it is not.
        """
        check_positive_finite("path_decay", path_decay)
        other = DualSolver(dataclasses.replace(self.problem, path_decay=path_decay), self.oracle)
        other.state.carry_over(self.state)
        return other

    @with_own_defaults
    def prepare(self) -> None:
        """Let the oracle reduce the data, and compile what it needs on first use; :meth:`step` does it otherwise.

        Call it before a deadline starts: compilation happens once a machine and may take some seconds.
        """
        self.state.prepare()

    @with_own_defaults
    def step(self, weights: ParallelWeights, *, rtol: float, deadline: Deadline, max_rounds: int = _MAX_ROUNDS) -> Certificate:
        """Certify ``weights`` as well as the time allows.

        Args:
            weights: The network now. Gates have to be among those of the problem.
            rtol: Relative gap at which to stop.
            deadline: When to stop.
            max_rounds: Rounds of column generation at most; 0 leaves it at the residual of the network.

        Raises:
            InvalidInputError: If torch has written to the inputs since the solver was made: what is proven is of those before.
            SoundnessError: If a bound comes out above an attained value. That is a bug; nothing is proven then.
        """
        self._check_unchanged()
        begin = deadline.elapsed
        primal = self.problem.primal(weights)
        pass_seconds = deadline.elapsed - begin
        data_are_finite = all_finite(self.problem.inputs)
        if not (math.isfinite(primal.value) and data_are_finite):
            return self._failed(primal, weights, rtol)
        self.prepare()
        run = SolverRun(self.state, primal, rtol, deadline, pass_seconds=pass_seconds)
        found = run.execute(weights, max_rounds)
        return self._certificate(primal, rtol, found.status, found.stats, found.improving_branches)

    @with_own_defaults
    def assess(self, weights: ParallelWeights, *, rtol: float) -> Certificate:
        """What the best bound says of ``weights``, without any new work on the bound.

        Args:
            weights: A network; gates have to be among those of the problem.
            rtol: Relative gap up to which it is called certified.

        Raises:
            InvalidInputError: As for :meth:`step`.
            SoundnessError: If the bound lies above what the network attains.
        """
        self._check_unchanged()
        primal = self.problem.primal(weights)
        if not math.isfinite(primal.value):
            return self._failed(primal, weights, rtol)
        self.state.attain(primal.value)
        self.state.check_sound(primal.value)
        is_certified = self.state.certifies(primal.value, rtol)
        status = CertificateStatus.CERTIFIED if is_certified else CertificateStatus.GAP_OPEN
        return self._certificate(primal, rtol, status, {"attainable_objective": self.attainable}, ())

    def offer(self, bound: DualBound, evidence: Mapping[str, float | str]) -> bool:
        """Keep ``bound`` if it beats the best one; return whether it did."""
        return self.state.offer(bound, evidence)

    def scale(self, primal_value: float, dual_bound: float) -> float:
        """What gaps are relative to: the objective; for losses that can be negative, the zero net's distance from the bound."""
        return self.state.scale(primal_value, dual_bound)

    def state_dict(self) -> dict[str, Any]:
        """Best bound, witnesses, and the problem they belong to (as a hash), as tensors, numbers and strings only."""
        return {"problem": self._identity.digest(), **self.state.as_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            InvalidInputError: If it is of another problem: other data (or another dtype of them), loss, strength or
                architecture. Bounds of one say nothing of another.
            KeyError: If it is not what :meth:`state_dict` gives.
        """
        if state["problem"] != self._identity.digest():
            raise InvalidInputError(
                "The state is of another training problem than this solver: expected the same inputs and targets (bit for bit, "
                "in the same order), loss, `path_decay`, penalty and architecture. Prove the bound anew with `step`; "
                "`at_path_decay` takes over what holds at another strength."
            )
        self.state.restore(state)

    def _failed(self, primal: PrimalValue, weights: ParallelWeights, rtol: float) -> Certificate:
        layers = [(f"weights of linear layer {layer}", weight) for layer, weight in enumerate(weights.weights)]
        reason = non_finite_reason([("inputs", self.problem.inputs), *layers, ("outputs", primal.outputs)])
        return self._certificate(primal, rtol, CertificateStatus.NUMERICAL_FAILURE, {"reason": reason}, ())

    def _zero_reason(self, primal: PrimalValue) -> dict[str, str]:
        """Why a gap stays open where there is nothing left to gain; empty elsewhere."""
        loss = self.problem.loss
        share = primal.value / max(float(loss.value(torch.zeros_like(loss.targets))), SMALLEST_GAP)
        if not (loss.is_non_negative and share <= _NOTHING):
            return {}
        return {
            "reason": f"open because the objective is zero up to rounding, {share:.1g} of the loss where all outputs are zero: "
            "no gap relative to so little closes, and nothing is left to gain"
        }

    def _check_unchanged(self) -> None:
        if self._identity.has_changed():
            raise InvalidInputError(
                "The inputs were changed in place since the solver was made; expected those its bounds are proven for. Make a "
                "new one, or hand it a copy (`inputs.clone()`)."
            )

    def _certificate(
        self,
        primal: PrimalValue,
        rtol: float,
        status: CertificateStatus,
        stats: Mapping[str, float | str],
        improving: tuple[Witness, ...],
    ) -> Certificate:
        failed = status is CertificateStatus.NUMERICAL_FAILURE
        if status not in (CertificateStatus.NUMERICAL_FAILURE, CertificateStatus.CERTIFIED):
            stats = {**stats, **self._zero_reason(primal)}
        best = DualBound.vacuous() if failed else self.best
        limits = {"dual_norm_upper": best.dual_norm_upper, "dual_norm_limit": self.problem.dual_norm_limit}
        return Certificate(
            primal_value=primal.value,
            dual_bound=best.value,
            dual_point=best.dual_point,
            rtol=rtol,
            scale=math.nan if failed else self.scale(primal.value, best.value),
            path_decay=self.problem.path_decay,
            penalty=self.problem.penalty,
            status=status,
            scope=self.problem.scope,
            improving_branches=improving,
            evidence={} if failed else {**limits, **self.state.evidence},
            stats=stats,
        )
