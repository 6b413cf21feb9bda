"""The dual over a finite set of branches: what a network can still learn without new branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_strongdual.certification._restricted.restricted_primal import solve_restricted_primal
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.dual_norm_bound import Witness
from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.losses import HuberFamilyLoss, SoftmaxLoss
from torch_strongdual.nn import ParallelWeights

__all__ = ["AtomSet", "RestrictedSolution", "solve_restricted_dual"]

_MAX_NUMBERS = 2**26  # features of atoms held at a time: half a gigabyte


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RestrictedSolution:
    """A dual point that is (nearly) optimal over the atoms.

    Args:
        candidate: In the dual domain, balanced where needed; its dual norm over *all* branches is for an oracle to bound.
        magnitudes: Norm of the coefficient of each atom, ``None`` where there are none.
        objective: Training objective of the network made of the atoms with these coefficients, an upper bound on the optimum
            up to rounding.
        solver: ``"group lasso"``, ``"cone program"`` or ``"alternating directions"``.
    """

    candidate: Tensor
    magnitudes: Tensor | None
    objective: float
    solver: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AtomSet:
    """Features of branches of unit norm, one last hidden unit each, with coefficients to start from.

    Args:
        features: Shape ``(num_samples, num_atoms)``, no zero columns.
        coefficients: Shape ``(num_atoms, out_features)``.
        owners: The witness that each atom is, ``None`` for a unit of a network.
    """

    features: Tensor
    coefficients: Tensor
    owners: tuple[Witness | None, ...]

    @classmethod
    def of_network(cls, problem: TrainingProblem, weights: ParallelWeights) -> AtomSet:
        """Every last hidden unit of every live branch; coefficients are the network's own last layer.

        Of large networks on large data only the branches of largest norm, as many as fit in half a gigabyte: a start.
        """
        kept = _largest_branches(weights, len(problem.inputs))
        masks = weights.spec.gate_masks(problem.inputs)  # its branches may be fewer or more than those of the problem's spec
        masks = None if masks is None else masks[kept]
        hidden, last_layer = tuple(weight[kept] for weight in weights.weights[:-1]), weights.weights[-1][kept]
        features = problem.spec.features(problem.inputs, hidden, masks)
        norms = torch.linalg.vector_norm(hidden[-1], dim=2)  # (num_branches, units): the layer's share of one unit
        for weight in hidden[:-1]:
            norms = norms * torch.linalg.matrix_norm(weight)[:, None]
        last = last_layer.transpose(1, 2)  # (num_branches, units, out)
        if problem.spec.patch_map is not None and problem.spec.patch_map.num_locations > 1:
            features, norms, last = _along_directions(features, norms, last, problem.spec.patch_map.num_locations)
        live = (norms > 0) & (torch.linalg.vector_norm(last, dim=2) > 0)
        columns = features.permute(0, 2, 1)[live] / norms[live][:, None]
        coefficients = last[live] * norms[live][:, None]
        return cls(features=columns.T, coefficients=coefficients, owners=(None,) * len(columns))._without_zeros()

    @classmethod
    def of_witnesses(cls, problem: TrainingProblem, witnesses: Sequence[Witness]) -> AtomSet:
        """Features of the witnesses, with zero coefficients."""
        masks = problem.spec.gate_masks(problem.inputs)
        columns = []
        for witness in witnesses:
            mask = None if masks is None or witness.gate_index is None else masks[witness.gate_index][None]
            stacked = [weight[None] for weight in witness.weights]
            features = problem.spec.features(problem.inputs, stacked[:-1], mask)[0]
            # The witness's one output direction; of a layer of several units only this combination attains its value.
            columns.append(features @ _direction(witness.weights[-1]))
        none = torch.zeros(len(problem.inputs), 0, dtype=torch.float64)
        features = torch.stack(columns, dim=1) if columns else none
        coefficients = features.new_zeros(features.shape[1], problem.spec.out_features)
        return cls(features=features, coefficients=coefficients, owners=tuple(witnesses))._without_zeros()

    def joined(self, other: AtomSet) -> AtomSet:
        """Both sets."""
        return AtomSet(
            features=torch.cat([self.features, other.features], dim=1),
            coefficients=torch.cat([self.coefficients, other.coefficients]),
            owners=self.owners + other.owners,
        )

    def in_use(self, problem: TrainingProblem, solution: RestrictedSolution) -> list[Witness]:
        """Witnesses of weight in a solution over these atoms; where it gives no weights, those whose constraint is tight."""
        if solution.magnitudes is not None:
            used = solution.magnitudes > 0
        else:
            used = torch.linalg.vector_norm(self.features.T @ solution.candidate, dim=1) >= 0.999 * problem.dual_norm_limit
        return [owner for owner, is_used in zip(self.owners, used.tolist(), strict=True) if is_used and owner is not None]

    def _without_zeros(self) -> AtomSet:
        size = torch.linalg.vector_norm(self.features, dim=0)
        kept = torch.isfinite(size) & (size > 1e-12 * size.max().clamp(min=1e-300)) if len(size) else size.bool()
        owners = tuple(owner for owner, is_kept in zip(self.owners, kept.tolist(), strict=True) if is_kept)
        return AtomSet(features=self.features[:, kept], coefficients=self.coefficients[kept], owners=owners)


def _largest_branches(weights: ParallelWeights, num_samples: int) -> Tensor | slice:
    """Numbers of the branches whose hidden units can be held for all samples at once; a slice if that is all of them."""
    number = max(1, _MAX_NUMBERS // max(1, num_samples * max(weights.spec.hidden_widths)))
    if weights.num_branches <= number:
        return slice(None)
    return torch.topk(weights.product_norms(), number).indices.sort().values


def _along_directions(
    features: Tensor, norms: Tensor, last: Tensor, num_locations: int
) -> tuple[Tensor, Tensor, Tensor]:  # (branches, num_samples, k), (branches, k), (branches, k, out)
    """Units that reach the last layer at several locations as units with one output: the singular directions of its weights.

    A unit that reads the locations in one direction is a branch of norm one; for one output there is one direction a unit, and
    nothing is lost.
    """
    number, units = norms.shape
    heads = last.reshape(number, units, num_locations, -1)
    left, singular, right = torch.linalg.svd(heads, full_matrices=False)
    combined = torch.einsum("knhq,khqr->knhr", features.unflatten(2, (units, num_locations)), left)  # type: ignore[no-untyped-call]
    return combined.flatten(2), norms.repeat_interleave(singular.shape[2], dim=1), (singular[..., None] * right).flatten(1, 2)


def _direction(last: Tensor) -> Tensor:  # (out, units) -> (units,)
    """Unit combination of the last hidden units that the last layer of a rank-one witness reads."""
    direction: Tensor = torch.linalg.svd(last, full_matrices=False)[2][0]
    return direction


def solve_restricted_dual(
    problem: TrainingProblem,
    atoms: AtomSet,
    *,
    rtol: float,
    deadline: Deadline,
    as_cone_program: bool = True,
) -> RestrictedSolution:
    """Solve the dual over ``atoms`` through its primal, see :func:`solve_restricted_primal`.

    Args:
        problem: The training problem.
        atoms: At least one.
        rtol: Relative gap over the restricted problem to reach.
        deadline: When to stop.
        as_cone_program: Whether Clarabel solves what it is suited for, or the absolute loss only.
    """
    found = solve_restricted_primal(
        problem, atoms.features, atoms.coefficients, rtol=rtol, deadline=deadline, as_cone_program=as_cone_program
    )
    candidate = problem.dual_candidate(found.outputs)
    if found.multipliers is not None:
        # Nearer to feasible than the residual; for the absolute loss the residual does not even determine the dual point.
        others = _in_domain(problem, found.multipliers)
        candidate = max(candidate, others, key=lambda point: _restricted_bound(problem, atoms.features, point))
    return RestrictedSolution(
        candidate=candidate,
        magnitudes=torch.linalg.vector_norm(found.coefficients, dim=1),
        objective=found.objective,
        solver=found.solver,
    )


def _in_domain(problem: TrainingProblem, multipliers: Tensor) -> Tensor:
    """Multipliers of a cone program with what its tolerance leaves of the domain's constraints removed."""
    loss, point = problem.loss, multipliers
    if isinstance(loss, HuberFamilyLoss):
        reach = loss.slope_bound / loss.normalizer
        point = point.clamp(-reach, reach)
    elif isinstance(loss, SoftmaxLoss):
        point = point - point.mean(dim=1, keepdim=True)
        point = point - point.mean(dim=1, keepdim=True)  # what rounding left
    return loss.balanced(point) if problem.spec.output_bias else point


def _restricted_bound(problem: TrainingProblem, features: Tensor, point: Tensor) -> float:
    """What multiples of ``point`` attain of the dual over the atoms, evaluated in plain float64."""
    norm = float(torch.linalg.vector_norm(features.T @ point, dim=1).max())
    scale = problem.loss.best_scale(point, problem.dual_norm_limit / norm if norm > 0.0 else 1.0)
    return problem.loss.dual_objective(scale * point)
