"""Solving the dual over a whole training run: the best bound so far, and branches that can still lower the objective."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_strongdual.certification.certificate import SMALLEST_GAP, Certificate, CertificateStatus, DualBound
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.dual_norm_bound import DualNormBound, Witness
from torch_strongdual.certification.oracles import AbstractDualNormOracle, AutoOracle, BoundRequest
from torch_strongdual.certification.restricted_dual import AtomSet, solve_restricted_dual
from torch_strongdual.certification.training_problem import PrimalValue, TrainingProblem
from torch_strongdual.errors import InvalidInputError, SolverError, SoundnessError, UnsupportedModelError
from torch_strongdual.nn import ParallelWeights

__all__ = ["DualSolver"]

_MAX_ROUNDS = 40
_MAX_WITNESSES = 256


class DualSolver:
    """Proves lower bounds on the optimum of one :class:`TrainingProblem`, and remembers the best.

    Each :meth:`step` starts from the residual of the network, scaled until it is dual feasible. If that leaves a gap, column
    generation solves the dual: the restricted dual over the network's own branches and the witnesses found so far gives
    a point, an oracle bounds its dual norm and hands back the branches that violate it most, which join the set.

    The bound belongs to the problem, not to the weights, so it never gets worse from step to step. So does
    ``attainable``, the best objective of any network seen, be it trained or put together from the branches found: when the two
    meet, the dual is solved, and what gap is left is the network's own.

    Args:
        problem: What is trained.
        oracle: Bounds the dual norm; default :class:`AutoOracle`.

    Raises:
        UnsupportedModelError: If the oracle cannot bound branches of this architecture.

    Example:
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
        self.oracle = AutoOracle() if oracle is None else oracle
        if not isinstance(self.oracle, AbstractDualNormOracle):
            raise InvalidInputError(f"`oracle` is {oracle!r}; expected an oracle object such as AutoOracle(), or None.")
        if (reason := self.oracle.supports(problem.spec)) is not None:
            raise UnsupportedModelError(f"{type(self.oracle).__name__} cannot certify {problem.spec}: {reason}.")
        self.best = DualBound.vacuous()
        self.attainable = math.inf
        self._oracle_state: Any = None
        self._witnesses: list[Witness] = []
        self._evidence: dict[str, float | str] = {}

    @property
    def witnesses(self) -> tuple[Witness, ...]:
        """Unit branches found so far, kept as atoms of the restricted dual."""
        return tuple(self._witnesses)

    def at_path_decay(self, path_decay: float) -> DualSolver:
        """A solver of the same problem at another strength, with what carries over.

        The dual norm belongs to data and architecture: the oracle's state is shared, branches found so far are kept, and the
        best dual point, rescaled until it is feasible, is the first bound.

        Args:
            path_decay: Above zero.
        """
        other = DualSolver(dataclasses.replace(self.problem, path_decay=path_decay), self.oracle)
        other._oracle_state, other._witnesses = self._oracle_state, list(self._witnesses)
        if self.best.dual_point is not None:
            rescaled = other.problem.scaled_bound(self.best.dual_point, self.best.dual_norm_upper)
            other.offer(rescaled, {**self._evidence, "dual_point_from": "another path decay"})
        return other

    def prepare(self) -> None:
        """Let the oracle reduce the data, and compile what it needs on first use; :meth:`step` does it otherwise.

        Call it before a deadline starts: compilation happens once a machine and may take some seconds.
        """
        if self._oracle_state is None:
            self._oracle_state = self.oracle.init(self.problem.spec, self.problem.inputs)

    def step(self, weights: ParallelWeights, *, rtol: float, deadline: Deadline, max_rounds: int = _MAX_ROUNDS) -> Certificate:
        """Certify ``weights`` as well as the time allows.

        Args:
            weights: The network now. Gates have to be among those of the problem.
            rtol: Relative gap at which to stop.
            deadline: When to stop.
            max_rounds: Rounds of column generation at most; 0 leaves it at the residual of the network.

        Raises:
            SoundnessError: If a bound comes out above an attained value. That is a bug; nothing is proven then.
        """
        primal = self.problem.primal(weights)
        data_are_finite = bool(torch.isfinite(self.problem.inputs).all())
        if not (math.isfinite(primal.value) and data_are_finite):
            return self._certificate(primal, rtol, CertificateStatus.NUMERICAL_FAILURE, {}, ())
        self.prepare()
        run = _Run(self, primal, rtol, deadline)
        run.try_candidate(self.problem.dual_candidate(primal.outputs), "residual")
        if not (run.is_done() or run.is_solved()):
            run.generate_columns(weights, max_rounds)
        status = CertificateStatus.CERTIFIED if run.is_certified() else run.open_status()
        return self._certificate(primal, rtol, status, run.stats, run.improving_branches())

    def assess(self, weights: ParallelWeights, *, rtol: float) -> Certificate:
        """What the best bound says of ``weights``, without any new work on the bound.

        Args:
            weights: A network; gates have to be among those of the problem.
            rtol: Relative gap up to which it is called certified.

        Raises:
            SoundnessError: If the bound lies above what the network attains.
        """
        primal = self.problem.primal(weights)
        if not math.isfinite(primal.value):
            return self._certificate(primal, rtol, CertificateStatus.NUMERICAL_FAILURE, {}, ())
        run = _Run(self, primal, rtol, Deadline(0.0))
        run.check_sound()
        status = CertificateStatus.CERTIFIED if run.is_certified() else CertificateStatus.GAP_OPEN
        return self._certificate(primal, rtol, status, {"attainable_objective": self.attainable}, ())

    def bound_dual_norm(self, candidate: Tensor, request: BoundRequest) -> DualNormBound:
        """Ask the oracle, and remember its witnesses."""
        found = self.oracle.bound(self._oracle_state, candidate, request)
        self._witnesses = (self._witnesses + list(found.witnesses))[-_MAX_WITNESSES:]
        return found

    def offer(self, bound: DualBound, evidence: Mapping[str, float | str]) -> bool:
        """Keep ``bound`` if it beats the best one; return whether it did."""
        if not bound.value > self.best.value:
            return False
        self.best, self._evidence = bound, dict(evidence)
        return True

    def scale(self, primal_value: float, dual_bound: float) -> float:
        """What gaps are relative to: the objective; for losses that can be negative, the zero net's distance from the bound."""
        return primal_value if self.problem.loss.is_non_negative else self.problem.null_value() - dual_bound

    def state_dict(self) -> dict[str, Any]:
        """Best bound and witnesses, as tensors, numbers and strings only."""
        return {
            "attainable": self.attainable,
            "dual_bound": self.best.value,
            "dual_norm_upper": self.best.dual_norm_upper,
            "dual_point": self.best.dual_point,
            "evidence": dict(self._evidence),
            "witnesses": [(list(w.weights), w.value, -1 if w.gate_index is None else w.gate_index) for w in self._witnesses],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; the problem must be the same."""
        point = state["dual_point"]
        self.best = DualBound(value=state["dual_bound"], dual_point=point, dual_norm_upper=state["dual_norm_upper"])
        self.attainable = float(state["attainable"])
        self._evidence = dict(state["evidence"])
        self._witnesses = [
            Witness(weights=tuple(weights), value=value, gate_index=None if gate < 0 else gate)
            for weights, value, gate in state["witnesses"]
        ]

    def _certificate(
        self,
        primal: PrimalValue,
        rtol: float,
        status: CertificateStatus,
        stats: Mapping[str, float | str],
        improving: tuple[Witness, ...],
    ) -> Certificate:
        failed = status is CertificateStatus.NUMERICAL_FAILURE
        best = DualBound.vacuous() if failed else self.best
        evidence = {"dual_norm_upper": best.dual_norm_upper, "dual_norm_limit": self.problem.dual_norm_limit, **self._evidence}
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
            evidence={} if failed else evidence,
            stats=stats,
        )


class _Run:
    """One step of a solver: what this network's certificate still lacks."""

    def __init__(self, solver: DualSolver, primal: PrimalValue, rtol: float, deadline: Deadline) -> None:
        self.solver, self.problem = solver, solver.problem
        self.primal, self.rtol, self.deadline = primal, rtol, deadline
        self.last = DualNormBound(upper=0.0)
        self.rounds = 0
        self.source = "earlier"
        self.residual_witnesses: tuple[Witness, ...] = ()
        solver.attainable = min(solver.attainable, primal.value)
        self.failure = ""

    @property
    def stats(self) -> dict[str, float | str]:
        """What ran, for the certificate."""
        stats = {**self.last.stats, "dual_norm_upper": self.last.upper, "dual_norm_lower": self.last.lower}
        stats["attainable_objective"] = self.solver.attainable
        stats |= {"rounds": float(self.rounds), "bound_from": self.source, "seconds": self.deadline.elapsed}
        if not self.is_certified():
            stats["reason"] = self.reason()
        return stats | ({"solver_failure": self.failure} if self.failure else {})

    def relative_gap(self, bound: float) -> float:
        """Gap that a dual bound of this value would leave."""
        gap = self.primal.value - bound
        scale = self.solver.scale(self.primal.value, bound)
        return 0.0 if gap <= SMALLEST_GAP else gap / scale if scale > 0 else math.inf

    def is_certified(self) -> bool:
        """Whether the best bound is close enough."""
        return math.isfinite(self.solver.best.value) and self.relative_gap(self.solver.best.value) <= self.rtol

    def is_done(self) -> bool:
        """Whether there is nothing left to do, or no time."""
        return self.is_certified() or self.deadline.expired

    def is_solved(self) -> bool:
        """Whether column generation can add nothing: no oracle, or a network is known that nearly meets the bound."""
        attainable, bound = self.solver.attainable, self.solver.best.value
        known = attainable - bound <= 0.2 * self.rtol * self.solver.scale(attainable, bound)
        return math.isinf(self.last.upper) or known

    def reason(self) -> str:
        """What keeps the gap open: the network, or the proof, whichever is farther from the other."""
        best, attainable = self.solver.best.value, self.solver.attainable
        scale = max(self.solver.scale(self.primal.value, best), SMALLEST_GAP)
        excess, unproven = (self.primal.value - attainable) / scale, (attainable - best) / scale
        if excess >= unproven:
            better = f"a network with objective {attainable:.6g} exists, {100 * excess:.2g} % lower"
            return f"open because {better}: train longer or add `improving_branches`"
        looseness = self.last.upper / max(self.last.lower, self.problem.dual_norm_limit) - 1.0
        limited_by = self.last.stats.get("limited_by", "the time for column generation" if self.deadline.expired else "rtol")
        name = self.last.stats.get("oracle", type(self.solver.oracle).__name__)
        return f"open because {name} knows the dual norm to {100 * looseness:.2g} % only, limited by {limited_by}"

    def open_status(self) -> CertificateStatus:
        """Why the gap is open."""
        return CertificateStatus.BUDGET_EXHAUSTED if self.deadline.expired else CertificateStatus.GAP_OPEN

    def improving_branches(self) -> tuple[Witness, ...]:
        """Branches whose addition lowers the objective: they violate the constraint at the network's own residual."""
        limit = self.problem.dual_norm_limit * (1.0 + 1e-9)
        return tuple(w for w in self.residual_witnesses if w.value > limit)

    def try_candidate(self, candidate: Tensor, source: str) -> None:
        """Bound the dual norm of a candidate, coarsely first, and offer the bound it proves."""
        # With the dual solved already only the branches that violate it are wanted.
        fine = 0.5 if self.is_solved() else min(0.25 * self.rtol, 1e-2)
        known = math.inf
        floor = self._sufficient_norm(candidate)
        for rtol in (max(fine, 2e-2), fine):
            # The coarse answer must leave time for column generation.
            deadline = self.deadline if rtol == fine else self.deadline.fraction(0.4)
            request = BoundRequest(rtol=rtol, floor=floor, known_upper=known, deadline=deadline)
            self.last = self.solver.bound_dual_norm(candidate, request)
            if source == "residual":
                self.residual_witnesses = self.last.witnesses
            known = min(known, self.last.upper)
            proven = self.problem.scaled_bound(candidate, max(known, 1e-300))
            if self.solver.offer(proven, {"dual_point_from": source, "oracle": self.last.stats.get("oracle", "")}):
                self.source = source
            self.check_sound()
            if self.is_done() or rtol == fine or not self._would_pay(candidate, proven.value):
                break

    def _sufficient_norm(self, candidate: Tensor) -> float:
        """A bound on the dual norm that would certify the network: an oracle need not prove less (used for effort only)."""
        limit = self.problem.dual_norm_limit
        too_large, enough = 8.0 * limit, limit
        for _ in range(20):
            middle = 0.5 * (too_large + enough)
            scale = self.problem.loss.best_scale(candidate, limit / middle)
            if self.relative_gap(self.problem.loss.dual_objective(scale * candidate)) <= 0.98 * self.rtol:
                enough = middle
            else:
                too_large = middle
        return enough

    def _would_pay(self, candidate: Tensor, proven: float) -> bool:
        """Whether knowing the dual norm exactly would close a good part of the gap (an estimate, used for effort only)."""
        attained = max(self.last.lower, self.problem.dual_norm_limit)
        scale = self.problem.loss.best_scale(candidate, self.problem.dual_norm_limit / attained)
        hoped = self.problem.loss.dual_objective(scale * candidate)
        return self.relative_gap(hoped) <= max(self.rtol, 0.7 * self.relative_gap(proven))

    def check_sound(self) -> None:
        """A bound above an attained value is a bug in the bound: withdraw it and say so."""
        best = self.solver.best.value
        attained = min(self.primal.value, self.problem.null_value())
        if best > attained:
            self.solver.best = DualBound.vacuous()
            raise SoundnessError(
                f"The dual bound {best!r} came out above an attained objective {attained!r}: a bug in the bound, which has "
                "been withdrawn. Please report it with the data.",
                primal_value=attained,
                dual_bound=best,
            )

    def generate_columns(self, weights: ParallelWeights, max_rounds: int) -> None:
        """Solve the dual over a growing set of branches until certified, out of time or stuck."""
        atoms = AtomSet.of_network(self.problem, weights)
        atoms = atoms.joined(AtomSet.of_witnesses(self.problem, self.solver._witnesses))
        stuck = 0
        while atoms.features.shape[1] and not (self.is_done() or self.is_solved()) and self.rounds < max_rounds and stuck < 3:
            self.rounds += 1
            known = len(self.solver._witnesses)
            try:
                solution = solve_restricted_dual(
                    self.problem, atoms, rtol=0.1 * self.rtol, deadline=self.deadline.fraction(0.5)
                )
            except SolverError as error:
                self.failure = f"{error} ({error.solver}: {error.solver_status})"
                return
            self.solver.attainable = min(self.solver.attainable, solution.objective)
            before = self.relative_gap(self.solver.best.value)
            self.try_candidate(solution.candidate, "restricted dual")
            stuck = stuck + 1 if self.relative_gap(self.solver.best.value) > 0.98 * before else 0
            atoms = atoms.joined(AtomSet.of_witnesses(self.problem, self.solver._witnesses[known:]))
