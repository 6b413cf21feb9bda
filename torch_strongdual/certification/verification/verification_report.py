"""What an independent check of a certificate found."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

__all__ = ["VerificationReport", "VerificationVerdict"]


class VerificationVerdict(enum.Enum):
    """Outcome of a check. The value is the message shown to the user."""

    VERIFIED = "The dual bound was proven again by other means: no network in the certificate's scope has a lower objective."
    REFUTED = "The dual point does not prove the dual bound for these data, this loss and this path decay."
    UNVERIFIED = "The dual bound could be neither proven again nor refuted; it may well hold."
    VACUOUS = "The certificate has no finite dual bound, so there is nothing to verify."


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationReport:
    """What was checked, and what came out.

    A check that was not reached, because an earlier one failed, counts as not passed.

    Args:
        verdict: The outcome.
        domain_checked: Whether the dual point was proven to lie in the domain of the conjugate, exactly.
        balanced_checked: Whether its columns sum to exactly zero, where the output has a bias; true without one.
        dual_objective_checked: Whether the dual objective was proven to be at least the certificate's bound.
        feasibility_checked: Whether the dual norm was proven to be at most what the path decay allows.
        dual_objective: The dual objective, rounded down; ``-inf`` if it was not evaluated.
        dual_norm_upper: Upper bound on the dual norm (of the penalty's own form) that was found; ``inf`` if none.
        dual_norm_limit: What the dual norm may be at most: the path decay.
        method: How the dual norm was bounded.
        reason: What failed or was out of reach; empty if verified.
    """

    verdict: VerificationVerdict
    domain_checked: bool = False
    balanced_checked: bool = False
    dual_objective_checked: bool = False
    feasibility_checked: bool = False
    dual_objective: float = -math.inf
    dual_norm_upper: float = math.inf
    dual_norm_limit: float = math.nan
    method: str = "none"
    reason: str = ""

    @property
    def is_verified(self) -> bool:
        """Whether all checks passed."""
        return self.verdict is VerificationVerdict.VERIFIED

    def __str__(self) -> str:
        """Verdict, its message and the reason."""
        return " ".join(part for part in (f"{self.verdict.name}: {self.verdict.value}", self.reason) if part)
