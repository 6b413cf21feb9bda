"""What a certification that proves nothing tells the user."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_warn

from torch_strongdual.certification import CertificateStatus
from torch_strongdual.errors import NumericalWarning, SoundnessError, StrongDualWarning

from ._bound_keeper import Attempt

__all__ = ["warn_of_dropped_bound", "warn_of_failure"]


def warn_of_failure(attempt: Attempt) -> None:
    """Warn, on rank zero, if certification failed; training goes on."""
    error = attempt.error
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
    elif attempt.certificate is not None and attempt.certificate.status is CertificateStatus.NUMERICAL_FAILURE:
        rank_zero_warn(
            f"The network of epoch {attempt.record.epoch} cannot be certified. {attempt.certificate.status.value}",
            category=NumericalWarning,
        )


def warn_of_dropped_bound() -> None:
    """Warn, on rank zero, that the bound of a checkpoint, or of the fit that is continued, is of no use."""
    rank_zero_warn(
        "The checkpoint, or the fit before, holds a dual bound for other data, loss, path penalty or architecture than those "
        "trained now, or of another version of this package. It is dropped, with its history, and proven anew.",
        category=StrongDualWarning,
    )
