"""One call of the dual solver: which dual points are tried, in what order, with how much of the time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from torch_strongdual.certification._dual.dual_state import DualState
from torch_strongdual.certification._dual.open_reason import expected_gap, reason_of
from torch_strongdual.certification._dual.proven_points import ProvenPoint
from torch_strongdual.certification._restricted.restricted_dual import AtomSet, solve_restricted_dual
from torch_strongdual.certification.certificate import SMALLEST_GAP, CertificateStatus, DualBound
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.dual_norm_bound import DualNormBound, Witness
from torch_strongdual.certification.oracles import BoundRequest
from torch_strongdual.certification.training_problem import PrimalValue
from torch_strongdual.errors import SolverError
from torch_strongdual.nn import ParallelWeights

__all__ = ["RunResult", "SolverRun"]

_COARSE = 2e-2
_LOOSE = 2e-2  # a proof this far from what is attained is what limits the bound
_LOOSE_ROUNDS = 2  # of column generation then: new branches do not tighten a proof
_HARDLY = 0.03  # of the time for a residual, where the joint dual took over before
_TOO_SHORT = 0.02  # of the time spent
_LEAST_NORM = 0.25  # over the limit, that is worth proving of a point that is not a residual


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunResult:
    """What a run says of its network; what it found of the problem is in the state.

    Args:
        status: Why it ended.
        stats: What ran, for the certificate.
        improving_branches: Branches whose addition lowers the objective.
    """

    status: CertificateStatus
    stats: Mapping[str, float | str]
    improving_branches: tuple[Witness, ...]


class SolverRun:
    """One step of a solver: what this network's certificate still lacks.

    Args:
        state: What is known of the problem; what is found is added to it.
        primal: Value and outputs of the network.
        rtol: Relative gap at which to stop.
        deadline: When to stop.
        pass_seconds: What one pass of the data through the network takes, about; work of that size is not begun without time.
    """

    def __init__(
        self, state: DualState, primal: PrimalValue, rtol: float, deadline: Deadline, *, pass_seconds: float = 0.0
    ) -> None:
        self.pass_seconds = pass_seconds
        self.state, self.problem = state, state.problem
        self.primal, self.rtol, self.deadline = primal, rtol, deadline
        self.last = DualNormBound(upper=0.0)
        self.rounds = 0
        self.source = "earlier"
        self.residual_witnesses: tuple[Witness, ...] = ()
        self.failure = self.restricted_solver = ""
        self._in_use: list[Witness] = []
        self._generates_columns = True
        self._history: list[tuple[float, float]] = []

    def execute(self, weights: ParallelWeights, max_rounds: int) -> RunResult:
        """Lower the gap of this network until it is certified, the time is up, or nothing helps.

        Args:
            weights: The network.
            max_rounds: Rounds of column generation at most; 0 leaves it at its residual.

        Raises:
            SoundnessError: If a bound comes out above an attained value.
        """
        self.state.attain(self.primal.value)
        self._search(weights, max_rounds)
        status = CertificateStatus.CERTIFIED if self.is_certified() else self.open_status()
        return RunResult(status=status, stats=self.stats, improving_branches=self.improving_branches())

    def _search(self, weights: ParallelWeights, max_rounds: int) -> None:
        """Residual first; then what suits whichever is farther off, the proof or the network."""
        self._generates_columns = max_rounds > 0
        self.try_candidate(self.problem.dual_candidate(self.primal.outputs), "residual")
        if self.is_done() or self.is_solved():
            return
        was_loose = self.is_loose()
        if self._suits_joint():
            self.try_joint_points()
        self.generate_columns(weights, min(max_rounds, _LOOSE_ROUNDS) if was_loose else max_rounds)
        if not was_loose and max_rounds > 0 and self._suits_joint():
            self.try_joint_points()
        if was_loose:
            self.refine_combination()

    # What is known

    @property
    def stats(self) -> dict[str, float | str]:
        """What ran, for the certificate."""
        stats = {**self.last.stats, "dual_norm_upper": self.last.upper, "dual_norm_lower": self.last.lower}
        stats["attainable_objective"] = self.state.attainable
        stats |= {"rounds": float(self.rounds), "bound_from": self.source, "seconds": self.deadline.elapsed}
        if self.restricted_solver:
            stats["restricted_dual_by"] = self.restricted_solver
        if not self.is_certified():
            stats["reason"] = self.reason()
            expected = expected_gap(self._history, 5.0 * self.deadline.elapsed)
            if math.isfinite(expected):
                stats |= {"estimated_gap_in_five_times_the_time": expected}
        return stats | ({"solver_failure": self.failure} if self.failure else {})

    def relative_gap(self, bound: float) -> float:
        """Gap that a dual bound of this value would leave."""
        return self.state.relative_gap(self.primal.value, bound)

    def is_certified(self) -> bool:
        """Whether the best bound is close enough."""
        return self.state.certifies(self.primal.value, self.rtol)

    def is_done(self) -> bool:
        """Whether there is nothing left to do, or no time."""
        return self.is_certified() or self.deadline.expired

    def is_solved(self) -> bool:
        """Whether column generation can add nothing: no oracle, or a network is known that nearly meets the bound."""
        attainable, bound = self.state.attainable, self.state.best.value
        known = attainable - bound <= 0.2 * self.rtol * self.state.scale(attainable, bound)
        return math.isinf(self.last.upper) or known

    def is_loose(self) -> bool:
        """Whether the last bound is farther from what is attained than that is from being feasible."""
        limit = self.problem.dual_norm_limit
        return self.last.looseness(limit) > max(_LOOSE, 0.1 * self.rtol, self.last.lower / limit - 1.0)

    def reason(self) -> str:
        """What keeps the gap open: the network, or the proof, whichever is farther from the other."""
        return reason_of(
            self.last,
            best=self.state.best.value,
            attainable=self.state.attainable,
            primal=self.primal.value,
            scale=max(self.state.scale(self.primal.value, self.state.best.value), SMALLEST_GAP),
            limit=self.problem.dual_norm_limit,
            oracle=type(self.state.oracle).__name__,
            has_expired=self.deadline.expired,
            seconds=self.deadline.elapsed,
            history=self._history,
        )

    def open_status(self) -> CertificateStatus:
        """Why the gap is open."""
        # What is left may be too short for anything: then time is what was lacking.
        is_over = self.deadline.remaining <= max(self.pass_seconds, _TOO_SHORT * self.deadline.elapsed)
        return CertificateStatus.BUDGET_EXHAUSTED if is_over else CertificateStatus.GAP_OPEN

    def improving_branches(self) -> tuple[Witness, ...]:
        """Branches whose addition lowers the objective: they violate the constraint at the network's own residual."""
        limit = self.problem.dual_norm_limit * (1.0 + 1e-9)
        return tuple(w for w in self.residual_witnesses if w.value > limit)

    # What is tried

    def try_candidate(self, candidate: Tensor, source: str) -> None:
        """Bound the dual norm of a candidate, coarsely first, and offer the bound it proves."""
        # With the dual solved already only the branches that violate it are wanted.
        fine = 0.5 if self.is_solved() else min(0.25 * self.rtol, 1e-2)
        known = self.state.known_residual_bound(candidate)
        if known is not None and self.state.joint.worthwhile_from > 0.0:
            self.last, self.residual_witnesses = known, known.witnesses
            if self._suits_joint():  # as it did then
                return
        upper, oracle = (math.inf, "") if known is None else (known.upper, str(known.stats.get("oracle", "")))
        floor = self._sufficient_norm(candidate, self.problem.dual_norm_limit)
        for rtol, share in self._stages(source, max(fine, self._coarse_rtol(floor)), fine):
            request = BoundRequest(rtol=rtol, floor=floor, known_upper=upper, deadline=self.deadline.fraction(share))
            proven = self._ask(candidate, source, request, known_from=oracle)
            upper, oracle = min(upper, self.last.upper), str(self.last.stats.get("oracle", ""))
            if source == "residual":
                self.residual_witnesses = self.last.witnesses
                self.state.residual_bound = (candidate, dataclasses.replace(self.last, upper=upper))
            if self.is_done() or rtol == fine or not self._would_pay(candidate, proven.value):
                break
            if self._suits_joint():
                break
        self._combine()

    def try_joint_points(self) -> None:
        """Points chosen together with their relaxed dual norm, which their own multipliers prove; ever tighter ones."""
        deadline = self.deadline.fraction(self.state.joint.total_share)
        near = self.problem.dual_candidate(self.primal.outputs)
        near_norm = max((witness.value for witness in self.residual_witnesses), default=0.0)
        while not (self.is_done() or deadline.expired):
            limit = deadline.fraction(self.state.joint.share)
            found = self.state.joint_point(limit, near=near, near_norm=near_norm, sufficient=self._sufficient_for)
            if found is None:
                return
            self.last = found.bound
            self._prove(found.candidate, found.bound.upper, "joint dual")
            self._combine()

    def refine_combination(self) -> None:
        """Ask the oracle at the best combination of proven points, for all the time that is left."""
        best = None if self.is_done() else self.state.points.best_combination(self.problem, self.deadline)
        if best is None or self.is_done():
            return
        floor = self._sufficient_for(best.candidate)
        rtol = min(0.25 * self.rtol, 1e-2)
        request = BoundRequest(rtol=rtol, floor=floor, known_upper=best.dual_norm_upper, deadline=self.deadline)
        self._ask(best.candidate, best.source, request, known_from=best.oracle)
        self._combine()

    def generate_columns(self, weights: ParallelWeights, max_rounds: int) -> None:
        """Solve the dual over a growing set of branches until certified, out of time or stuck."""
        if max_rounds < 1 or self.is_done() or self.deadline.remaining < self.pass_seconds:
            return
        atoms = AtomSet.of_network(self.problem, weights)
        atoms = atoms.joined(AtomSet.of_witnesses(self.problem, self.state.atoms.witnesses))
        stuck, before_this = 0, set(map(id, self.state.atoms.witnesses))
        while atoms.features.shape[1] and not (self.is_done() or self.is_solved()) and self.rounds < max_rounds and stuck < 3:
            self.rounds += 1
            try:
                limit = self.deadline.fraction(0.5)
                solution = solve_restricted_dual(self.problem, atoms, rtol=0.1 * self.rtol, deadline=limit)
            except SolverError as error:
                self.failure = f"{error} ({error.solver}: {error.solver_status})"
                break
            self.restricted_solver = solution.solver
            self._in_use = atoms.in_use(self.problem, solution)
            self.state.attain(solution.objective)
            before = self.relative_gap(self.state.best.value)
            known = set(map(id, self.state.atoms.witnesses))
            self.try_candidate(solution.candidate, "restricted dual")
            stuck = stuck + 1 if self.relative_gap(self.state.best.value) > 0.98 * before else 0
            new = [w for w in self.state.atoms.witnesses if id(w) not in known]
            atoms = atoms.joined(AtomSet.of_witnesses(self.problem, new))
        if self.rounds:
            # What came last was never part of a solution, so it cannot have been idle.
            fresh = [w for w in self.state.atoms.witnesses if id(w) not in before_this]
            self.state.atoms.age([*self._in_use, *fresh])

    # Parts

    def _ask(self, candidate: Tensor, source: str, request: BoundRequest, *, known_from: str) -> DualBound:
        """Bound the dual norm of a candidate, offer what that proves, and return it.

        Args:
            candidate: The dual point.
            source: Where it comes from.
            request: What is asked of the oracle.
            known_from: The oracle that proved ``request.known_upper``.
        """
        self.last = self.state.bound_dual_norm(candidate, request)
        if request.known_upper <= self.last.upper and math.isfinite(request.known_upper):
            stats = {**self.last.stats, "oracle": known_from} if known_from else self.last.stats
            self.last = dataclasses.replace(self.last, upper=request.known_upper, stats=stats)
        return self._prove(candidate, self.last.upper, source)

    def _prove(self, candidate: Tensor, upper: float, source: str) -> DualBound:
        """Offer what a bound on the dual norm of a candidate proves, and remember the point."""
        upper = max(upper, 1e-300)
        oracle = str(self.last.stats.get("oracle", ""))
        proven = self.problem.scaled_bound(candidate, upper)
        self._offer(proven, source, oracle)
        self.state.points.add(ProvenPoint(candidate=candidate, dual_norm_upper=upper, source=source, oracle=oracle))
        return proven

    def _combine(self) -> None:
        """Offer what combinations of proven points prove without any oracle."""
        if self.is_certified():
            return
        # Cheap where data are few: worth a little more than the time allowed, at its end.
        limit = self.deadline if self.deadline.remaining > 0.0 else Deadline(0.02 * self.deadline.elapsed)
        best = self.state.points.best_combination(self.problem, limit)
        if best is not None:
            proven = self.problem.scaled_bound(best.candidate, best.dual_norm_upper)
            self._offer(proven, best.source, best.oracle)

    def _offer(self, proven: DualBound, source: str, oracle: str) -> None:
        if self.state.offer(proven, {"dual_point_from": source, "oracle": oracle}):
            self.source = source
        self.state.check_sound(self.primal.value)
        self._history.append((self.deadline.elapsed, self.relative_gap(self.state.best.value)))

    def _stages(self, source: str, coarse: float, fine: float) -> tuple[tuple[float, float], ...]:
        """Tolerances to ask for in turn, and the share of the time left that each may take.

        The coarse answer must leave time for what may follow: column generation, a point that suits a loose proof better.
        """
        joint = self.state.joint
        joint_is_next = not joint.is_spent and joint.worthwhile_from == 0.0
        share = joint.residual_share if self._generates_columns or not joint.is_spent else 1.0
        if joint_is_next:
            share = _HARDLY if joint.has_begun else 0.1
        last = 0.5 if joint_is_next and source == "residual" else 1.0
        return (coarse, share if coarse > fine else last), (fine, last)

    def _sufficient_for(self, candidate: Tensor) -> float:
        return self._sufficient_norm(candidate, _LEAST_NORM * self.problem.dual_norm_limit)

    def _sufficient_norm(self, candidate: Tensor, least: float) -> float:
        """A bound on the dual norm that would certify the network: an oracle need not prove less (used for effort only)."""
        limit = self.problem.dual_norm_limit

        def suffices(norm: float) -> bool:
            scale = self.problem.loss.best_scale(candidate, limit / norm)
            return self.relative_gap(self.problem.loss.dual_objective(scale * candidate)) <= 0.98 * self.rtol

        too_large, enough = 8.0 * limit, least
        if not suffices(least):  # mostly so: one evaluation instead of twenty
            return least
        for _ in range(20):
            middle = 0.5 * (too_large + enough)
            enough, too_large = (middle, too_large) if suffices(middle) else (enough, middle)
        return enough

    def _coarse_rtol(self, floor: float) -> float:
        """Tolerance to ask for at first: where what suffices is looser, one that leaves the question the same."""
        excess = floor / self.problem.dual_norm_limit - 1.0
        return min(_COARSE, 0.9 * excess) if excess >= 0.5 * _COARSE else _COARSE

    def _suits_joint(self) -> bool:
        """Whether a point chosen together with its relaxed dual norm promises more than a tighter bound on this one."""
        joint = self.state.joint
        is_far = self.last.looseness(self.problem.dual_norm_limit) > joint.worthwhile_from
        return not joint.is_spent and self.is_loose() and is_far

    def _would_pay(self, candidate: Tensor, proven: float) -> bool:
        """Whether knowing the dual norm exactly would close a good part of the gap (an estimate, used for effort only)."""
        attained = max(self.last.lower, self.problem.dual_norm_limit)
        scale = self.problem.loss.best_scale(candidate, self.problem.dual_norm_limit / attained)
        hoped = self.problem.loss.dual_objective(scale * candidate)
        return self.relative_gap(hoped) <= max(self.rtol, 0.7 * self.relative_gap(proven))
