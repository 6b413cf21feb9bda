"""What oracles for branches with activations keep between calls: the data in coordinates of their row space."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.dual_norm_bound import DualNormBound
from torch_strongdual.certification.oracles.row_space import RowSpace, power_of_two_scale
from torch_strongdual.nn.branch_spec import BranchSpec

__all__ = ["ReducedState"]

FloatArray = NDArray[np.float64]


@dataclass(slots=True, kw_only=True, eq=False)
class ReducedState:
    """What lasts between calls: the reduced data, and where the maxima were last time.

    Args:
        spec: Architecture of the branches.
        matrix: The matrix the first layer multiplies, float64, divided by ``scale``.
        scale: A power of two.
        row_space: Reduction of ``matrix``; of zeros if its numbers are not finite.
        starts: Unit vectors in reduced coordinates that were maximisers before.
    """

    spec: BranchSpec
    matrix: FloatArray
    scale: float
    row_space: RowSpace
    starts: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))

    @classmethod
    def of(cls, spec: BranchSpec, inputs: Tensor, **others: Any) -> Self:
        """Reduce raw inputs to their row space.

        Args:
            spec: Architecture of the branches.
            inputs: Shape ``(num_samples, in_features)``, or what ``spec`` flattens to that.
            **others: Fields of a subclass.
        """
        matrix = spec.branch_inputs(inputs.detach()).cpu().numpy()
        is_finite = bool(np.isfinite(matrix).all())
        scale = power_of_two_scale(matrix) if is_finite else 1.0
        matrix = matrix / scale
        row_space = RowSpace.of(matrix if is_finite else np.zeros_like(matrix))
        return cls(spec=spec, matrix=matrix, scale=scale, row_space=row_space, **others)

    @property
    def known_starts(self) -> FloatArray:
        """``starts`` in the shape of points, ``(m, rank)``."""
        rank = self.row_space.rank
        return self.starts if self.starts.shape[1] == rank else np.zeros((0, rank))

    def answer_at_once(self, duals: FloatArray, oracle: str) -> DualNormBound | None:
        """The bound where there is nothing to compute: zero duals or data, or numbers that are not finite; else ``None``.

        Args:
            duals: Shape ``(num_samples, out_features)``.
            oracle: Name to give in ``stats``.
        """
        if not (np.isfinite(duals).all() and np.isfinite(self.matrix).all()):
            return DualNormBound(upper=math.inf, stats={"limited_by": "non-finite numbers in the data or the dual point"})
        if not duals.any() or not self.matrix.any():
            return DualNormBound(upper=0.0, stats={"oracle": oracle})
        return None
