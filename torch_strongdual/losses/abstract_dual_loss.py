"""The interface between a training loss and the dual: value, residual, conjugate, domain."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

__all__ = ["AbstractDualLoss", "FeasiblePoint"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeasiblePoint:
    r"""A float64 dual point together with what floating point could not represent.

    There is a real matrix :math:`\Lambda^*` that lies *exactly* in the domain of the conjugate (and satisfies
    :math:`1'\Lambda^* = 0` exactly, if the output has a bias) with
    :math:`\|\Lambda^*_i - \Lambda_i\|_2 \le` ``row_correction[i]`` and :math:`D(\Lambda^*) \ge` ``dual_lower``.

    The losses of this package return a point that is its own :math:`\Lambda^*`; ``row_correction`` then also bounds the
    distance of its rows from those of the point that was to be certified, so that a dual norm computed for either can be used.

    Args:
        dual_point: :math:`\Lambda`, float64.
        row_correction: Non-negative, float64; usually of the order of 1e-17.
        dual_lower: Proven lower bound on the dual objective, ``-inf`` if nothing could be proven.
    """

    dual_point: Tensor  # shape: (num_samples, out_features)
    row_correction: Tensor  # shape: (num_samples,)
    dual_lower: float


class AbstractDualLoss(ABC):
    r"""A convex training loss bound to its targets, with everything duality needs.

    Writing :math:`\ell(F)` for the loss as a function of the outputs :math:`F` (n, c), the dual objective is
    :math:`D(\Lambda) = -\ell^*(-\Lambda)`, and :math:`D(\Lambda) \le \ell(F) + \langle \Lambda, F \rangle` for all F, with
    equality at the residual :math:`R = -\nabla \ell(F)`. All tensors are float64, shape ``(num_samples, out_features)``.
    """

    @property
    @abstractmethod
    def targets(self) -> Tensor:  # shape: (num_samples, out_features)
        """Targets as a float64 matrix (class labels as rows of class probabilities)."""

    @property
    def num_samples(self) -> int:
        """Rows of outputs, targets and dual points."""
        return self.targets.shape[0]

    @property
    def num_outputs(self) -> int:
        """Columns of outputs, targets and dual points; classes, for cross-entropy."""
        return self.targets.shape[1]

    @property
    def is_non_negative(self) -> bool:
        """Whether the loss is never negative, so that gaps relative to its value make sense. True unless overridden."""
        return True

    @abstractmethod
    def value(self, outputs: Tensor) -> Tensor:  # shape: ()
        """Loss at ``outputs``, equal to what the torch module returns in float64. Differentiable."""

    @abstractmethod
    def value_upper(self, outputs: Tensor, output_error: Tensor) -> float:
        """Upper bound on the exact loss at outputs that differ from ``outputs`` by at most ``output_error``, elementwise."""

    @abstractmethod
    def residual(self, outputs: Tensor) -> Tensor:
        """``-gradient`` at ``outputs`` (an element of the negative subdifferential at kinks)."""

    @abstractmethod
    def dual_objective(self, dual_point: Tensor) -> float:
        """``D(dual_point)``, plain float64 evaluation; ``-inf`` outside the domain (by more than rounding)."""

    @abstractmethod
    def feasible_point(self, dual_point: Tensor, *, output_bias: bool) -> FeasiblePoint:
        """Certify a dual point: repair it by no more than rounding and bound its dual objective from below.

        ``dual_point`` must be in the domain, and balanced if ``output_bias``, up to rounding; if it is farther outside
        than rounding explains, ``dual_lower`` is ``-inf``.
        """

    @abstractmethod
    def balanced(self, dual_point: Tensor) -> Tensor:
        """A point near ``dual_point``, in the domain, whose columns sum to zero up to rounding.

        This is the constraint of an output bias. Maps points of the domain to points of the domain and leaves balanced points
        as they are (up to rounding).
        """

    @abstractmethod
    def best_scale(self, dual_point: Tensor, max_scale: float) -> float:
        """The ``s`` in ``[0, max_scale]`` that maximises the concave function ``D(s * dual_point)``, inside the domain."""

    @abstractmethod
    def fitted_bias(self, outputs: Tensor) -> Tensor:  # shape: (out_features,)
        """An output bias ``b`` that minimises ``loss(outputs + b)``; finite, even where the infimum is at infinity."""
