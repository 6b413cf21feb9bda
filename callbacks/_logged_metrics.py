"""From the history of a run to the metrics of an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .certification_record import CertificationRecord

__all__ = ["logged_metrics"]

_NAMES = ("primal_value", "dual_bound", "duality_gap", "relative_gap", "seconds")


def logged_metrics(history: Iterable[CertificationRecord]) -> dict[str, float]:
    """Return the last finite value of each metric.

    A callback that monitors a metric ends the fit when the metric is infinite or NaN, so such values are left out; the
    record keeps them.
    """
    values = {}
    for record in history:
        values.update({name: getattr(record, name) for name in _NAMES if math.isfinite(getattr(record, name))})
    return values
