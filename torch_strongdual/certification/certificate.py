"""Certificates: a primal value, a proven lower bound on the optimum, and what they say together."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from torch_strongdual.certification.dual_norm_bound import Witness
from torch_strongdual.errors import CertificationError

__all__ = ["SMALLEST_GAP", "Certificate", "CertificateScope", "CertificateStatus", "DualBound"]

#: What rounding up a zero objective may leave: gaps of this size are zero.
SMALLEST_GAP = 1e-290


class CertificateStatus(enum.Enum):
    """Why a certification ended. The value is the advice shown to the user."""

    CERTIFIED = "The duality gap is within tolerance: the network is globally optimal to that tolerance."
    GAP_OPEN = (
        "The duality gap exceeds the tolerance. The network may or may not be optimal: train longer, "
        "add the branches found, or give the certifier more time."
    )
    BUDGET_EXHAUSTED = "The certifier ran out of time before its bound was final. Raise `time_budget`."
    NUMERICAL_FAILURE = "Non-finite values were met, so nothing is proven (the bound is -inf). Check data, weights and loss."


class CertificateScope(enum.Enum):
    """The set of networks whose optimum the bound speaks of."""

    GLOBAL = "all parallel networks with branches of this architecture, of any number and any hidden widths"
    GATED = "all parallel networks whose branches use the gates of this model"
    WIDTHS = "all parallel networks with branches of this architecture, of any number and with hidden widths up to these"
    GATED_WIDTHS = "all parallel networks whose branches use the gates of this model and have hidden widths up to these"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DualBound:
    """A lower bound on the optimal objective and the point that proves it: one object, so that they cannot disagree.

    Args:
        value: In the units of the training objective; ``-inf`` when nothing is proven.
        dual_point: Float64, shape ``(num_samples, out_features)``; ``None`` when nothing is proven.
        dual_norm_upper: Proven upper bound on the dual norm of ``dual_point``, rounding and repair included.
    """

    value: float
    dual_point: Tensor | None = field(repr=False)
    dual_norm_upper: float

    @classmethod
    def vacuous(cls) -> DualBound:
        """The bound that says nothing."""
        return cls(value=-math.inf, dual_point=None, dual_norm_upper=math.inf)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Certificate:
    """Primal value, proven bound, and whether they are close enough to call the network optimal.

    Args:
        primal_value: Training objective of the model in its product form, rounded up; units of the training objective.
        dual_bound: Proven lower bound on the objective of *every* network in ``scope``; ``-inf`` when nothing is proven.
        dual_point: The float64 point that proves it, shape ``(num_samples, out_features)``, or ``None``.
        rtol: The relative gap up to which the model is called certified.
        scale: What the gap is relative to: ``primal_value`` for losses that are never negative; otherwise the zero net's
            value minus ``dual_bound``.
        path_decay: Strength of the path penalty.
        penalty: ``"product"`` or ``"l2_path"``.
        status: Why certification ended.
        scope: Which networks the bound speaks of.
        improving_branches: Unit branches that lower the objective when added to this network, most promising first.
        evidence: What an independent check of the bound needs: the proven dual norm and where it came from.
        stats: Seconds, oracle, dual norm bounds, what limited them.
    """

    primal_value: float
    dual_bound: float
    dual_point: Tensor | None = field(repr=False)
    rtol: float
    scale: float
    path_decay: float
    penalty: str
    status: CertificateStatus
    scope: CertificateScope
    improving_branches: tuple[Witness, ...] = field(default=(), repr=False)
    evidence: Mapping[str, float | str] = field(default_factory=dict)
    stats: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """How far, at most, the model is from the best objective; ``inf`` if nothing is proven."""
        return self.primal_value - self.dual_bound if math.isfinite(self.primal_value) else math.inf

    @property
    def relative_gap(self) -> float:
        """``gap / scale``; 0 when both are 0 up to underflow, ``inf`` when nothing is proven."""
        if self.gap <= SMALLEST_GAP:
            return 0.0
        return self.gap / self.scale if self.scale > 0.0 else math.inf

    @property
    def is_certified(self) -> bool:
        """Whether the model is proven optimal to the relative tolerance ``rtol``."""
        return self.status is CertificateStatus.CERTIFIED

    def raise_if_uncertified(self) -> None:
        """Raise :class:`CertificationError`, which carries this certificate, unless the model is certified."""
        if not self.is_certified:
            raise CertificationError(str(self), certificate=self)

    def __str__(self) -> str:
        """One sentence with the numbers, one with the advice."""
        if not math.isfinite(self.dual_bound):
            return f"objective {self.primal_value:.6g}, nothing proven about the optimum. {self.advice}"
        percent = f"{100 * self.relative_gap:.2g} %"
        interval = f"[{self.dual_bound:.6g}, {self.primal_value:.6g}]"
        head = f"objective {self.primal_value:.6g}, proven optimum in {interval}, gap {percent}"
        if self.is_certified:
            return f"{head} -> globally optimal to {percent} among {self.scope.value}"
        return f"{head} -> not certified at {100 * self.rtol:.2g} %. {self.advice}"

    @property
    def advice(self) -> str:
        """The status in words, and what exactly keeps the gap open."""
        reason = self.stats.get("reason", "")
        return f"{self.status.value} It is {reason}." if reason else self.status.value
