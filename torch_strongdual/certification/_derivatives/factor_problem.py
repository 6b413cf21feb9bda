r"""Training of two-layer networks as a piecewise smooth function of the factors, with its first and second derivatives.

The objective is ``loss(sum_j D_j X u_j g_j' + b) + limit / 2 * sum_j |u_j|^2 + |g_j|^2``, the power form of the penalty, which
fixes the scaling ``(u t, g / t)`` of each branch; ``D_j`` are the slopes of hidden unit j at the samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_strongdual.certification._derivatives.factor_point import FactorPoint
from torch_strongdual.certification._derivatives.kinked_data import KinkedData
from torch_strongdual.certification._restricted.scaled_loss import ScaledLoss

__all__ = ["FactorDerivatives", "FactorProblem"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FactorDerivatives:
    """Of the objective at a point, the sides of the kinks being as they are (the negative side on a kink).

    Args:
        value: The objective.
        gradient: In all factors, flat.
        hessian: The same twice.
        jumps: By how much the derivative along each normal is larger on the positive side, shape ``(number, num_normals)``.
    """

    value: float
    gradient: Tensor
    hessian: Tensor
    jumps: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FactorProblem:
    """Samples, loss and strength.

    Args:
        data: The samples.
        loss: In units.
        limit: Strength of the penalty in these units.
    """

    data: KinkedData
    loss: ScaledLoss
    limit: float

    def outputs(self, point: FactorPoint) -> Tensor:  # shape: (num_samples, out_features)
        """Of the network; on kinks its hidden units are zero."""
        hidden = self.data.gains(point.sides, point.gates) * (point.first @ self.data.rows.T)
        total = hidden.T @ point.last
        return total + point.bias if len(point.bias) else total

    def value(self, point: FactorPoint) -> float:
        """The objective."""
        penalty = 0.5 * self.limit * (point.first.square().sum() + point.last.square().sum())
        return float(self.loss.value(self.outputs(point)) + penalty)

    def jumps(self, point: FactorPoint) -> Tensor:  # shape: (number, num_normals)
        """By how much the derivative along each normal is larger on its positive side than on its negative side."""
        slopes = self.loss.slope(self.outputs(point)).detach()
        return self.data.jumps(point.last @ slopes.T, point.gates)

    def derivatives(self, point: FactorPoint) -> FactorDerivatives:
        """The objective's, at a point."""
        outputs = self.outputs(point)
        slopes, curvature = self.loss.slope(outputs).detach(), self.loss.curvature(outputs)
        gains = self.data.gains(point.sides, point.gates)
        hidden = gains * (point.first @ self.data.rows.T)
        along = point.last @ slopes.T  # (number, n): derivative in each active hidden unit
        first = (along * gains) @ self.data.rows + self.limit * point.first
        last = hidden @ slopes + self.limit * point.last
        gradient = torch.cat([first.flatten(), last.flatten(), slopes.sum(dim=0)[: len(point.bias)]])
        jacobian = self.jacobian(point)
        hessian = jacobian.flatten(0, 1).T @ torch.einsum("iqs,isp->iqp", curvature, jacobian).flatten(0, 1)
        self._add_penalty_and_products(hessian, point, gains, slopes)
        return FactorDerivatives(
            value=self.value(point), gradient=gradient, hessian=hessian, jumps=self.data.jumps(along, point.gates)
        )

    def jacobian(self, point: FactorPoint) -> Tensor:  # shape: (num_samples, out_features, number of factors)
        """Of the outputs in the flat factors."""
        gains = self.data.gains(point.sides, point.gates)
        hidden = gains * (point.first @ self.data.rows.T)
        n, c = len(self.data.rows), point.last.shape[1]
        first = torch.einsum("ji,ir,jq->iqjr", gains, self.data.rows, point.last).reshape(n, c, -1)
        last = torch.einsum("ji,qs->iqjs", hidden, torch.eye(c, dtype=torch.float64)).reshape(n, c, -1)
        bias = torch.eye(c, dtype=torch.float64)[:, : len(point.bias)].expand(n, c, -1)
        return torch.cat([first, last, bias], dim=2)

    def _add_penalty_and_products(self, hessian: Tensor, point: FactorPoint, gains: Tensor, slopes: Tensor) -> None:
        (number, rank), c = point.first.shape, point.last.shape[1]
        weights = number * (rank + c)
        hessian.diagonal()[:weights] += self.limit
        products = torch.einsum("ji,ir,iq->jrq", gains, self.data.rows, slopes)
        for j in range(number):
            rows = slice(j * rank, (j + 1) * rank)
            columns = slice(number * rank + j * c, number * rank + (j + 1) * c)
            hessian[rows, columns] += products[j]
            hessian[columns, rows] += products[j].T
