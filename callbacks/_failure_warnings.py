"""What a certification that proves nothing tells the user."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_warn

from torch_strongdual.certification import Certificate, CertificateStatus
from torch_strongdual.errors import NumericalWarning, SoundnessError, StrongDualWarning

from ._bound_keeper import Attempt

__all__ = ["warn_of_dropped_bound", "warn_of_failure"]


def warn_of_failure(attempt: Attempt, before: Certificate | None = None) -> None:
    """Warn, on rank zero, if certification failed, unless ``before`` did for the same reason; training goes on."""
    error, certificate = attempt.error, attempt.certificate
    if isinstance(error, SoundnessError):
        rank_zero_warn(
            f"A DUAL BOUND WAS WRONG: {error} For the rest of this fit no bound is proven but the one that needs no oracle. "
            "Certificates that this oracle gave before are not to be trusted.",
            category=StrongDualWarning,
        )
    elif error is not None:
        rank_zero_warn(
            f"Certification in epoch {attempt.record.epoch} failed, training goes on: {type(error).__name__}: {error}",
            category=StrongDualWarning,
        )
    elif certificate is not None and certificate.status is CertificateStatus.NUMERICAL_FAILURE:
        if before is not None and before.status is certificate.status and before.advice == certificate.advice:
            return
        rank_zero_warn(
            f"The network of epoch {attempt.record.epoch} cannot be certified. {certificate.advice}", category=NumericalWarning
        )


def warn_of_dropped_bound() -> None:
    """Warn, on rank zero, that the bound of a checkpoint, or of the fit that is continued, is of no use."""
    rank_zero_warn(
        "The checkpoint, or the fit before, holds a dual bound for other data, loss, path penalty or architecture than those "
        "trained now, or of another version of this package. It is dropped, with its history, and proven anew.",
        category=StrongDualWarning,
    )
