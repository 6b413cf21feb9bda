"""Low-rank augmented Lagrangian for the relaxed training problem: many samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._doubly_nonnegative._joint.abstract_joint_ascent import JointPart, RelaxedTraining
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.abstract_joint_factor import (
    AbstractJointFactor,
    Evaluated,
    FactorPart,
)
from torch_strongdual.certification.oracles._doubly_nonnegative.factor_penalty import FactorValue
from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift

__all__ = ["JointLowRank"]

FloatArray = NDArray[np.float64]


class JointLowRank(AbstractJointFactor):
    """For one output: a part for each sign to begin with. The size t of a part is the norm of its V.

    Args:
        training: The problem.
    """

    def __init__(self, training: RelaxedTraining) -> None:
        lift = Lift.of(training.rows, np.zeros(len(training.rows)), np.zeros(training.rows.shape[1]))
        parts = [FactorPart.of(lift, sign, training.path_decay) for sign in (1.0, -1.0)]
        super().__init__(training, parts, has_cones=True)

    @property
    def bias(self) -> float:
        """Of the output."""
        return float(self._bias[0])

    @property
    def parts(self) -> tuple[JointPart, ...]:
        """Moments and multipliers in full."""
        found = []
        for part, value, products in zip(self._parts, self._at.values, self._at.products, strict=True):
            base = np.zeros((1, products.shape[1]))
            base[0, 0] = part.size
            rows = np.concatenate([base, part.linear, products])
            found.append(JointPart(moments=rows @ rows.T, multipliers=value.multipliers.matrix(part.lift)))
        return tuple(found)

    def _evaluated(self, bias: FloatArray, linears: list[FloatArray], products: list[FloatArray]) -> Evaluated:
        """See :meth:`AbstractJointFactor._evaluated`."""
        training = self._training
        number = len(training.rows)
        sizes = [float(np.linalg.norm(linear)) for linear in linears]
        features = [p[:number, 0] - training.slope * p[number:, 0] for p in products]
        outputs = np.full(number, bias[0] if training.has_bias else 0.0)
        for part, size, feature in zip(self._parts, sizes, features, strict=True):
            outputs += part.sign * size * training.norms * feature
        value, dual = training.loss.evaluate(outputs)
        pull = dual * training.norms
        values: list[FactorValue] = []
        gradients = [np.array([-float(dual.sum()) if training.has_bias else 0.0])]
        for k, part in enumerate(self._parts):
            found = self._penalties[k].evaluate(sizes[k], linears[k], products[k])
            value += found.value + training.path_decay * sizes[k] ** 2
            found.products[:number, 0] -= part.sign * sizes[k] * pull
            found.products[number:, 0] += training.slope * part.sign * sizes[k] * pull
            of_linear, of_opened = self._penalties[k].pulled_back(found.products)
            of_size = found.size + 2.0 * training.path_decay * sizes[k] - part.sign * float(pull @ features[k])
            of_linear += found.linear + of_size / max(sizes[k], 1e-300) * linears[k]
            gradients += [of_linear.ravel(), of_opened.ravel()]
            values.append(found)
        return Evaluated(value=value, gradients=gradients, dual_point=dual, values=values, products=products)
