"""What the solvers of the relaxed training problem have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.oracles._doubly_nonnegative._joint.leaf_polish import PolishedLeaf
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.relaxed_losses import AbstractRelaxedLoss
from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift
from torch_strongdual.certification.oracles._doubly_nonnegative.product_multipliers import ProductMultipliers
from torch_strongdual.certification.oracles._doubly_nonnegative.safe_bound import safe_upper, safe_upper_of_products

__all__ = ["AbstractJointAscent", "JointLeaf", "JointPart", "RelaxedTraining"]

FloatArray = NDArray[np.float64]
SignArray = NDArray[np.int8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RelaxedTraining:
    r"""Minimise :math:`\ell(F) + \beta \sum_p Y^p_{11}` over moments of any size, two or more parts p of the sphere.

    The outputs are :math:`F_i = \rho_i \sum_p \sigma_p (Y^p_{1 z_i} - a Y^p_{1 s_i}) + b`, a the negative slope, b a bias,
    zero unless asked for, and :math:`\sigma_p` the sign of the part. The multiplier :math:`\lambda` of that equality is a dual
    point; at the optimum the relaxed maxima of :math:`\sigma_p \lambda` are at most :math:`\beta` on each part, and no such
    point has a larger dual objective.

    Args:
        rows: Of norm one, shape (n, r).
        norms: :math:`\rho` (n,), of size about one.
        loss: :math:`\ell`.
        slope: a, the negative slope.
        path_decay: :math:`\beta`.
        has_bias: Whether b is free.
        num_outputs: How many there are; see :class:`JointOutputs`, whose dual points are matrices.
    """

    rows: FloatArray
    norms: FloatArray
    loss: AbstractRelaxedLoss
    slope: float
    path_decay: float
    has_bias: bool
    num_outputs: int = 1

    def weights(self, dual_point: FloatArray) -> FloatArray:
        """Weights of the samples in the relaxation of the positive sign, whose linear part is for the slope."""
        norms = self.norms if dual_point.ndim == 1 else self.norms[:, None]
        result: FloatArray = (1.0 - self.slope) * dual_point * norms
        return result


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JointLeaf:
    """A part of the sphere for the branches of one sign, with what is needed for a bound on it.

    Args:
        sign: Of the output weights: 1 or -1.
        signs: Samples whose sign is decided there, as in :class:`Lift`, shape (n,).
        multipliers: Of the relaxation there, in the units of the solver; of shape (1 + r + 2 n, 1 + r + 2 n) if dense.
        moments: Where the solver stands, of any size, same shape: with dense multipliers, they can then be improved.
        factor: Of moments: rows of u and of open entries, shape (r + n, k), to the same end where multipliers are sparse.
    """

    sign: float
    signs: SignArray
    multipliers: FloatArray | ProductMultipliers
    moments: Tensor | None = None
    factor: FloatArray | None = None

    def scaled(self, lift: Lift, factor: float) -> PolishedLeaf:
        """What the multipliers times ``factor`` prove of ``lift``, to be gone on with if there are moments."""
        if isinstance(self.multipliers, ProductMultipliers):
            multipliers = self.multipliers.scaled(factor)
            if lift.bilinear is not None:  # outputs are in other coordinates
                multipliers = multipliers.without_cones(lift.rank)
            upper = safe_upper_of_products(lift, multipliers)
            if self.factor is not None:
                return PolishedLeaf.of_factor(lift, upper, multipliers, self.factor)
            return PolishedLeaf(lift, upper)
        matrix = factor * self.multipliers
        upper = safe_upper(lift, matrix)
        return PolishedLeaf(lift, upper) if self.moments is None else PolishedLeaf.of(lift, upper, matrix, self.moments)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JointPart:
    """Where a solver stands for the branches of one sign: a start for another one.

    Args:
        moments: Of any size, shape (1 + r + 2 n, 1 + r + 2 n).
        multipliers: Of their constraints, same shape.
    """

    moments: FloatArray
    multipliers: FloatArray


class AbstractJointAscent(ABC):
    """Solves a :class:`RelaxedTraining`, round by round.

    There is one part for each sign to begin with; :meth:`split` halves some of them at the sign of a sample, which tightens
    the relaxation where the trained network has its branches.
    """

    iterations: int

    @property
    @abstractmethod
    def dual_point(self) -> FloatArray:
        """The multiplier of the outputs, shape (n,)."""

    @property
    @abstractmethod
    def weights(self) -> FloatArray:
        """See :meth:`RelaxedTraining.weights`, at the dual point."""

    @property
    @abstractmethod
    def leaves(self) -> Sequence[JointLeaf]:
        """All parts: for each sign they cover the sphere."""

    @property
    @abstractmethod
    def num_parts(self) -> int:
        """How many parts there are, both signs together."""

    @property
    @abstractmethod
    def part_bytes(self) -> int:
        """Memory that another part takes."""

    @abstractmethod
    def advance(self, is_over: Callable[[], bool]) -> float:
        """Iterate for a round, or until time ``is_over``; return by how much the dual point moved, relatively.

        ``nan`` if numbers fail.
        """

    @abstractmethod
    def split(self, number: int) -> None:
        """Halve so many parts at the sign of a sample: those where that matters most."""
