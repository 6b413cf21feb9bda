"""The relaxed training problem of several outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._doubly_nonnegative._joint.abstract_joint_ascent import JointLeaf, RelaxedTraining
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.abstract_joint_factor import (
    AbstractJointFactor,
    Evaluated,
    FactorPart,
)
from torch_strongdual.certification.oracles._doubly_nonnegative.factor_penalty import FactorValue
from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift
from torch_strongdual.certification.oracles._doubly_nonnegative.low_rank_ascent import full_width

__all__ = ["JointOutputs"]

FloatArray = NDArray[np.float64]

_MANY_ROWS, _NARROW = 1000, 24  # with more samples, factors begin with so many columns: iterations take a third of the time


class JointOutputs(AbstractJointFactor):
    r"""Minimise :math:`\ell(F) + \frac\beta2 \sum_p \operatorname{tr} Y^p_{uu} + \operatorname{tr} Y^p_{vv}` over moments.

    The moments are those of (u, v, z, s), v for the output weights of a branch, and the outputs
    :math:`F_i = \rho_i \sum_p Y^p_{z_i v} + b`. The dual point is their residual; its dual norm is bounded by the largest
    :math:`(\operatorname{tr} \Lambda' Y_{zz} \Lambda)^{1/2}`. Means, and the cones that tie them to moments, add nothing
    to that: on problems of two and three outputs the relaxed maxima are the same to four digits. What does add to it is to
    know the sign of v along an axis: a part can be split at that like at the sign of a sample, for its products with z and s
    are then nonnegative, too.

    Args:
        training: The problem, with a slope of zero.
    """

    def __init__(self, training: RelaxedTraining) -> None:
        weights, directions = np.zeros((len(training.rows), training.num_outputs)), np.eye(training.num_outputs)
        lift = Lift.of_outputs(training.rows, weights, directions)
        is_costly = len(training.rows) > _MANY_ROWS and full_width(lift) > 2 * _NARROW
        part = FactorPart.of(lift, 1.0, training.path_decay, _NARROW if is_costly else None)
        super().__init__(training, [part], has_cones=False)

    @property
    def leaves(self) -> Sequence[JointLeaf]:
        """See :meth:`AbstractJointAscent.leaves`: without the rows of outputs."""
        rank = self._training.rows.shape[1]
        outputs = slice(rank, rank + self._training.num_outputs)
        found = zip(super().leaves, self._parts, strict=True)
        return [dataclasses.replace(leaf, factor=np.delete(part.factor, outputs, axis=0)) for leaf, part in found]

    def _widest_sample(self, k: int) -> tuple[float, int]:
        """See :meth:`AbstractJointFactor._widest_sample`; where there are no means, roots of second moments serve."""
        part, weights = self._parts[k], self.weights
        sizes = np.linalg.norm(self._at.products[k], axis=1)
        stakes = np.concatenate([np.linalg.norm(weights, axis=1), np.linalg.norm(weights, axis=0)])  # of samples, of outputs
        scores = stakes * np.minimum(*np.split(sizes, 2))
        scores[part.lift.signs != 0] = -1.0
        sample = int(scores.argmax())
        return float(scores[sample]), sample

    def _evaluated(self, bias: FloatArray, linears: list[FloatArray], products: list[FloatArray]) -> Evaluated:
        """See :meth:`AbstractJointFactor._evaluated`."""
        training = self._training
        number, rank = training.rows.shape
        norms = training.norms[:, None]
        outputs = np.tile(bias if training.has_bias else np.zeros_like(bias), (number, 1))
        for linear, product in zip(linears, products, strict=True):
            outputs += norms * (product[:number] @ linear[rank:].T)
        value, dual = training.loss.evaluate(outputs)
        pull = norms * dual
        values: list[FactorValue] = []
        gradients = [-dual.sum(axis=0) if training.has_bias else np.zeros_like(bias)]
        for penalty, linear, product in zip(self._penalties, linears, products, strict=True):
            found = penalty.evaluate(0.0, linear, product)
            value += found.value + 0.5 * training.path_decay * float(np.vdot(linear, linear))
            found.products[:number] -= pull @ linear[rank:]
            of_linear, of_opened = penalty.pulled_back(found.products)
            of_linear += training.path_decay * linear
            of_linear[rank:] -= pull.T @ product[:number]
            gradients += [of_linear.ravel(), of_opened.ravel()]
            values.append(found)
        return Evaluated(value=value, gradients=gradients, dual_point=dual, values=values, products=products)
