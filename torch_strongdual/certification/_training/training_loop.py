"""The loop behind optimisation to a certificate: descend, refit, bound, grow, on one problem with one solver."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from torch_strongdual.certification._growth import grown, random_branches
from torch_strongdual.certification._training.cell_refit import has_cells, refitted_in_cells
from torch_strongdual.certification._training.local_descent import descend
from torch_strongdual.certification._training.refit import has_kinks, merged, refitted
from torch_strongdual.certification._working_branches import WorkingBranches
from torch_strongdual.certification.certificate import Certificate, CertificateStatus
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.dual_norm_bound import Witness
from torch_strongdual.certification.dual_solver import DualSolver
from torch_strongdual.certification.optimization_result import OptimizationRecord, OptimizationStop
from torch_strongdual.certification.oracles import BoundRequest, LocalSearch
from torch_strongdual.errors import SolverError
from torch_strongdual.losses import AbstractDualLoss, HuberFamilyLoss

__all__ = ["TrainingLoop"]

_SEEDING_ROUNDS = 3
_FIRST_SEEDING, _SEEDING_ITERATIONS = 250, 60
_FIRST_SEEDING_RTOL = 1e-6  # finer ones are for later rounds, which have better branches
_FIRST_ITERATIONS, _MOST_ITERATIONS = 100, 1500
_COLUMN_ROUNDS = 4
_MAX_STALLS = 3
_FIRST_POOL, _POOL = 100, 200  # half of them descend in two thirds of the time, and as many steps
_SCOUTING_ROUNDS = 40
_SCOUTING_SHARE = 0.4  # of the time that is left; the rest is for the proof
_LARGE = 500  # numbers in all first layers


class TrainingLoop:
    """Lowers the objective and raises the bound until they meet.

    ``best`` only ever changes for a lower objective, so whatever stops the loop, it holds the best network found.

    Args:
        solver: Of the problem; its bound may come from earlier work.
        start: The network to start from.
        rtol: Relative gap to reach.
        deadline: When to stop.
        report: Called with each new record.
        seed: Of the random branches.
    """

    def __init__(
        self,
        solver: DualSolver,
        start: WorkingBranches,
        *,
        rtol: float,
        deadline: Deadline,
        report: Callable[[OptimizationRecord], None],
        seed: int = 0,
    ) -> None:
        self.solver, self.problem = solver, solver.problem
        self.rtol, self.deadline = rtol, deadline
        self.best, self.objective = start, self._objective_of(start)
        self._bounded = start, math.inf  # the branches last handed to the solver, and their objective
        self.history: list[OptimizationRecord] = []
        self._report = report
        self._scout = LocalSearch()
        self._scout_state = self._scout.init(self.problem.spec, self.problem.inputs) if has_cells(self.problem) else None
        self._may_improve = True  # whether local ascent finds more branches
        self._generator = torch.Generator().manual_seed(seed)
        self._note("start")

    def run(self) -> OptimizationStop:
        """Run to the end."""
        try:
            return self._run()
        except SolverError:
            return OptimizationStop.FAILED

    def _run(self) -> OptimizationStop:
        self.solver.prepare()
        self._offer(self._zero_network(), "start")
        self._seed_branches()
        stalls, max_rounds, effort = 0, 0, 1
        offered: tuple[Witness, ...] = ()  # branches found at another strength have never been
        while True:
            before = self.objective, self.solver.best.value
            self._improve(effort)
            effort += 1
            certificate = self._bound(max_rounds)
            if certificate.is_certified:
                return OptimizationStop.CERTIFIED
            if certificate.status is CertificateStatus.NUMERICAL_FAILURE:
                return OptimizationStop.FAILED
            if self.deadline.expired:
                return OptimizationStop.TIME
            self._grow(_new_witnesses(offered, self.solver.witnesses))
            # Refits of the absolute loss leave hardly more branches than samples, and later ones need some of the others again.
            offered = () if has_kinks(self.problem) else self.solver.witnesses
            progress = self._progress(*before)
            stalls = 0 if progress > 0.02 else stalls + int(max_rounds > 0)
            max_rounds = 0 if progress > 0.5 and not has_kinks(self.problem) else _COLUMN_ROUNDS
            if stalls >= _MAX_STALLS:
                return OptimizationStop.STUCK

    # Phases

    def _seed_branches(self) -> None:
        """Random branches that lower the objective, descending in between so that later ones see what is left."""
        number = self._pool_size()
        for attempt in range(_SEEDING_ROUNDS):
            if self.deadline.expired:
                return
            is_first = attempt == 0
            pool = min(number, _FIRST_POOL) if is_first else number
            start = grown(self.problem, self.best, random_branches(self.problem, pool, self._generator), one_by_one=False)
            if is_first:
                self._descend(_FIRST_SEEDING, max(1e-3 * self.rtol, _FIRST_SEEDING_RTOL), start)
            else:
                self._descend(_SEEDING_ITERATIONS, 1e-3 * self.rtol, start)

    def _pool_size(self) -> int:
        """More random branches than a solution needs, within reason."""
        spec = self.problem.spec
        if spec.is_linear:
            return min(spec.in_features, spec.out_features) + 2
        useful = 2 * self.problem.loss.targets.numel() + 8
        if spec.is_gated:
            gates = next(a for a in spec.activations if a.is_gated).gate_vectors[0].shape[0]
            useful = gates * min(spec.out_features, 3)
        return min(_POOL, useful)

    def _improve(self, effort: int) -> None:
        """Alternate descent and refit while that pays; with more effort, descend longer and to a finer tolerance."""
        if self._scout_state is not None and self._improve_in_cells():
            return
        max_iterations = min(_FIRST_ITERATIONS * 2**effort, _MOST_ITERATIONS)
        for _ in range(4):
            before = self.objective
            self._descend(max_iterations, self.rtol * 10.0 ** -(3 + effort))
            self._refit(self.best)
            if self.deadline.expired or before - self.objective <= 0.05 * self.rtol * abs(before):
                return

    def _improve_in_cells(self) -> bool:
        """Refit first layers within their activation patterns, and look for better patterns by local ascent, while that pays.

        Returns whether it did: not where there are too many branches, or the directions of several outputs lag behind.
        """
        if not self.solver.state.joint.is_spent and self.best.number * self.problem.spec.in_features > _LARGE:
            self._refit(self.best)  # cells of many branches cost more than a refit that leaves few
        deadline = self.deadline.fraction(_SCOUTING_SHARE)  # noise needs many branches, each refit of them seconds
        is_fine = self._refit_in_cells(self._no_branches())
        self._may_improve = True
        for _ in range(_SCOUTING_ROUNDS):
            before = self.objective
            if deadline.expired:
                break
            candidates = self._scouted()
            if candidates.number == 0 or self.deadline.expired:
                self._may_improve = candidates.number > 0
                break
            is_fine |= self._refit_in_cells(candidates)
            if before - self.objective <= 0.01 * self.rtol * abs(before):
                break
        return is_fine

    def _scouted(self) -> WorkingBranches:
        """Branches that violate the dual constraint at the residual by more than the tolerance, found without any proof."""
        if self._scout_state is None:
            return self._no_branches()
        residual = self.problem.dual_candidate(self.best.outputs(self.problem))
        request = BoundRequest(rtol=self.rtol, deadline=self.deadline.fraction(0.2))
        limit = self.problem.dual_norm_limit * (1.0 + 0.1 * self.rtol)
        found = self._scout.bound(self._scout_state, residual, request)
        return WorkingBranches.of_witnesses(self.problem, [w for w in found.witnesses if w.value > limit])

    def _refit_in_cells(self, candidates: WorkingBranches) -> bool:
        before = self.objective
        found = refitted_in_cells(
            self.problem, self.best, candidates, rtol=0.01 * self.rtol, deadline=self.deadline.fraction(0.3)
        )
        self._offer(found, "refit")
        return self.objective < before

    def _zero_network(self) -> WorkingBranches:
        """No branches, and the output bias that suits the targets best: optimal where these are constant, or one sample."""
        zero = self._no_branches()
        return zero if zero.output_bias is None else zero.with_bias(self.problem.null_outputs()[0])

    def _no_branches(self) -> WorkingBranches:
        return self.best.kept(torch.zeros(self.best.number, dtype=torch.bool))

    def _descend(self, max_iterations: int, rtol: float, start: WorkingBranches | None = None) -> None:
        deadline = self.deadline.fraction(0.3)
        for loss in self._smooth_losses():
            found = descend(
                self.problem,
                self.best if start is None else start,
                deadline=deadline,
                max_iterations=max_iterations,
                rtol=max(rtol, 1e-15),
                loss=loss,
                report=lambda branches: self._offer(branches, "descent"),
            )
            self._offer(found, "descent")
            start = None
        self._offer(merged(self.problem, self.best), "refit")

    def _smooth_losses(self) -> list[AbstractDualLoss | None]:
        """The loss itself; for the absolute loss Huber losses of shrinking width."""
        loss = self.problem.loss
        if not (isinstance(loss, HuberFamilyLoss) and loss.width == 0.0):
            return [None]
        error = float((self.best.outputs(self.problem) - loss.targets).abs().mean())
        return [
            HuberFamilyLoss(loss.targets, normalizer=loss.normalizer, width=width, slope_bound=loss.slope_bound)
            for width in (0.3 * error, 0.03 * error, 0.003 * error)
            if width > 0.0
        ]

    def _refit(self, branches: WorkingBranches) -> None:
        found = refitted(self.problem, branches, rtol=0.02 * self.rtol, deadline=self.deadline.fraction(0.2))
        self._offer(found, "refit")
        if found.number < self.best.number and not has_kinks(self.problem):
            # Not lower, to the tolerance of the refit, but smaller: worth a descent of its own.
            deadline = self.deadline.fraction(0.1)
            self._offer(descend(self.problem, found, deadline=deadline, max_iterations=_FIRST_ITERATIONS), "refit")

    def _bound(self, max_rounds: int) -> Certificate:
        if self._is_settled():  # what is lacking is the proof: all the time for it, and the search goes on where it stopped
            deadline = self.deadline
        else:
            joint = self.solver.state.joint
            may_be_short = (self._may_improve and not joint.needs_long_steps) or joint.is_spent
            share = 0.6 if may_be_short else 0.85
            deadline, self._bounded = self.deadline.fraction(share), (self.best, self.objective)
        weights = self._bounded[0].to_weights(self.problem)
        certificate = self.solver.step(weights, rtol=self.rtol, deadline=deadline, max_rounds=max_rounds)
        self._note("bound")
        return certificate

    def _is_settled(self) -> bool:
        """Whether the objective is what it was at the last bound, and what that lacked was the proof, not the network."""
        bounded = self.solver.state.residual_bound
        if bounded is None or self._bounded[1] - self.objective > 0.1 * self.rtol * abs(self.objective):
            return False
        _, known = bounded
        limit = self.problem.dual_norm_limit
        return known.looseness(limit) > max(self.rtol, 2.0 * (known.lower / limit - 1.0))

    def _grow(self, witnesses: list[Witness]) -> None:
        """Add what violates the residual by line searches; then refit over all that was found."""
        candidates = WorkingBranches.of_witnesses(self.problem, witnesses)
        if self._scout_state is not None and candidates.number and self._refit_in_cells(candidates):
            return
        self._offer(grown(self.problem, self.best, candidates, one_by_one=True), "growth")
        self._refit(self.best.joined(candidates.scaled(torch.zeros(candidates.number, dtype=torch.float64))))

    # Book-keeping

    def _objective_of(self, branches: WorkingBranches) -> float:
        if branches.number == 0 and branches.output_bias is None:
            return self.problem.null_value()
        value = self.problem.primal(branches.to_weights(self.problem)).value
        return math.inf if math.isnan(value) else value

    def _offer(self, branches: WorkingBranches, phase: str) -> None:
        """Keep ``branches`` if their objective is lower, or the same with fewer of them."""
        objective = self._objective_of(branches)
        is_smaller = objective == self.objective and branches.number < self.best.number
        if objective < self.objective or is_smaller:
            self.best, self.objective = branches, objective
            self._note(phase)

    def _note(self, phase: str) -> None:
        record = OptimizationRecord(
            seconds=self.deadline.elapsed,
            objective=self.objective,
            dual_bound=self.solver.best.value,
            num_branches=self.best.number,
            phase=phase,
        )
        self.history.append(record)
        self._report(record)

    def _progress(self, objective: float, bound: float) -> float:
        """What part of the gap (of the objective, while nothing is proven) the last round closed."""
        known = math.isfinite(bound)
        gap = objective - bound if known else abs(objective)
        closed = objective - self.objective
        closed += self.solver.best.value - bound if known else (math.inf if math.isfinite(self.solver.best.value) else 0.0)
        return closed / gap if gap > 0.0 else 0.0


def _new_witnesses(earlier: tuple[Witness, ...], now: tuple[Witness, ...]) -> list[Witness]:
    known = set(map(id, earlier))
    return [witness for witness in now if id(witness) not in known]
