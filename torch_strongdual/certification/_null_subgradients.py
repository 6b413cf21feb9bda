"""The largest useful strength under the absolute loss, whose derivative at the zero net need not be unique."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.dual_norm_bound import DualNormBound, Witness
from torch_strongdual.certification.oracles import AbstractDualNormOracle, BoundRequest
from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.losses import HuberFamilyLoss

__all__ = ["NullSubgradients"]

_ROUNDS = 30
_MAX_FREE = 20_000  # unknowns of the linear program
_UNIT = 2.0**-53


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NullSubgradients:
    r"""All residuals of the zero net, bias fitted: entries of a non-zero error are given, the others anything in a box.

    The zero net is optimal if and only if one of them (balanced, if there is an output bias) has a dual norm of at most
    ``path_decay``. So the smallest of their dual norms is sought, by cutting planes: any of them bounds it above, and a
    combination of branches along which the loss falls, whatever entries are chosen, bounds it below.

    Args:
        problem: With the absolute loss.
        given: Residual where it is unique, zero elsewhere, shape ``(num_samples, out_features)``.
        is_free: Entries of zero error.
        slope: Half the width of the box, :math:`\delta / N`.
    """

    problem: TrainingProblem
    given: Tensor
    is_free: Tensor
    slope: float

    @classmethod
    def of(cls, problem: TrainingProblem) -> NullSubgradients | None:
        """``None`` where the residual is unique."""
        loss = problem.loss
        if not isinstance(loss, HuberFamilyLoss) or loss.width > 0.0:
            return None
        error = loss.targets - problem.null_outputs()
        slope = loss.slope_bound / loss.normalizer
        subgradients = cls(problem=problem, given=slope * error.sign(), is_free=error == 0.0, slope=slope)
        return subgradients if bool(subgradients.is_free.any()) else None

    def least_dual_norm(self, oracle: AbstractDualNormOracle, *, rtol: float, deadline: Deadline) -> DualNormBound:
        """Bounds on the smallest dual norm, in the product form.

        Args:
            oracle: Bounds the dual norm of each point.
            rtol: Relative distance of the two bounds at which to stop.
            deadline: When to stop.
        """
        state = oracle.init(self.problem.spec, self.problem.inputs)
        longest = float(self.problem.feature_norms().max())
        point, cuts = self._even(), list[Tensor]()
        upper, lower, found = math.inf, 0.0, DualNormBound(upper=math.inf)
        for _ in range(_ROUNDS):
            found = oracle.bound(state, point, BoundRequest(rtol=rtol / 2, deadline=deadline))
            upper = min(upper, (found.upper + self._imbalance(point) * longest) * (1.0 + 8 * _UNIT))
            new = [self._outputs(witness) for witness in found.witnesses]
            cuts += [branch * (1.0 if float((branch * point).sum()) >= 0.0 else -1.0) for branch in new]
            lower = max([lower, *[self._descent(branch) for branch in cuts[len(cuts) - len(new) :]]])
            if upper <= lower * (1.0 + rtol) or deadline.expired or not cuts or int(self.is_free.sum()) > _MAX_FREE:
                break
            solved = self._least_over(cuts)
            if solved is None:
                break
            point, shares = solved
            lower = max(lower, self._descent(sum((s * c for s, c in zip(shares, cuts, strict=True)), torch.zeros_like(point))))
        return dataclasses.replace(found, upper=upper, lower=min(lower, upper))

    def _even(self) -> Tensor:
        """The point of equal free entries: the median leaves no more on one side than there are free ones."""
        if not self.problem.spec.output_bias:
            return self.given
        number = self.is_free.sum(dim=0).clamp(min=1)
        return torch.where(self.is_free, -self.given.sum(dim=0) / number, self.given)

    def _imbalance(self, point: Tensor) -> float:
        """What free entries would have to move by, in all, until columns sum to zero."""
        return sum(abs(math.fsum(column)) for column in point.T.tolist()) if self.problem.spec.output_bias else 0.0

    def _least_over(self, cuts: list[Tensor]) -> tuple[Tensor, list[float]] | None:
        r"""The point whose largest inner product with the cuts is smallest, and the cuts' shares in the proof of that."""
        from scipy.optimize import linprog

        free = self.is_free.numpy()
        unit = max(float(cut.abs().max()) for cut in cuts) or 1.0
        matrix = np.stack([cut.numpy()[free] / unit for cut in cuts])
        constants = np.array([float((cut * self.given).sum()) / (unit * self.slope) for cut in cuts])
        balance = np.zeros((0, matrix.shape[1]))
        if self.problem.spec.output_bias:
            columns = np.nonzero(free)[1]
            balance = (columns == np.unique(columns)[:, None]).astype(np.float64)
        rights = -self.given.numpy().sum(axis=0)[np.unique(np.nonzero(free)[1])] / self.slope
        solved = linprog(
            np.append(np.zeros(matrix.shape[1]), 1.0),
            A_ub=np.hstack([matrix, -np.ones((len(cuts), 1))]),
            b_ub=-constants,
            A_eq=np.hstack([balance, np.zeros((len(balance), 1))]) if len(balance) else None,
            b_eq=rights if len(balance) else None,
            bounds=[*[(-1.0, 1.0)] * matrix.shape[1], (None, None)],
        )
        if solved.x is None:
            return None
        point = self.given.clone()
        point[self.is_free] = torch.from_numpy(self.slope * np.clip(solved.x[:-1], -1.0, 1.0))
        weights = np.maximum(-solved.ineqlin.marginals, 0.0)
        # At most one in all, so that the combination is no larger than a unit branch.
        return point, (weights / max(weights.sum(), 1e-300) * (1.0 - 8 * len(weights) * _UNIT)).tolist()

    def _outputs(self, witness: Witness) -> Tensor:  # shape: (num_samples, out_features)
        spec = self.problem.spec
        masks = spec.gate_masks(self.problem.inputs)
        own = None if masks is None or witness.gate_index is None else masks[witness.gate_index][None]
        hidden = spec.features(self.problem.inputs, [weight[None] for weight in witness.weights[:-1]], own)[0]
        return hidden @ witness.weights[-1].T

    def _descent(self, branch: Tensor) -> float:
        r"""How fast the loss falls along a branch, whatever output bias goes with it; rounded down, negative if it rises.

        The derivative along :math:`\Phi + \delta` is :math:`-\sum R (\Phi + \delta)` over given entries plus
        :math:`s \sum |\Phi + \delta|` over free ones: convex in :math:`\delta`, and smallest where a free term vanishes.
        """
        return sum(self._column_descent(branch[:, column], column) for column in range(branch.shape[1]))

    def _column_descent(self, branch: Tensor, column: int) -> float:
        is_free, given = self.is_free[:, column], self.given[:, column]
        shifts = branch.new_zeros(1)
        if self.problem.spec.output_bias and bool(is_free.any()):
            shifts = -branch[is_free]
        best = -math.inf
        for part in torch.split(shifts, max(1, 2**22 // len(branch))):
            moved = branch + part[:, None]  # (shifts, num_samples)
            terms = torch.where(is_free, -self.slope * moved.abs(), given * moved)
            rounding = 4 * (len(branch) + 8) * _UNIT * (self.slope * moved.abs()).sum(dim=1)
            best = max(best, float((terms.sum(dim=1) - rounding).max()))
        return best
