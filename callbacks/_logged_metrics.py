"""From the history of a run to the metrics of an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable

import lightning.pytorch as pl
import torch

from .certification_record import CertificationRecord

__all__ = ["log_metrics", "logged_metrics"]

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


def log_metrics(pl_module: pl.LightningModule, history: Iterable[CertificationRecord], *, name: str, prog_bar: bool) -> None:
    """Log them as ``name/...``, as float64, on all ranks; with ``prog_bar`` the relative gap is shown in the progress bar."""
    device = "cpu" if pl_module.device.type == "mps" else pl_module.device  # which has no float64
    for metric, value in logged_metrics(history).items():
        pl_module.log(
            f"{name}/{metric}",
            torch.tensor(value, dtype=torch.float64, device=device),
            prog_bar=prog_bar and metric == "relative_gap",
            reduce_fx="max",  # of equal numbers: exact on any number of devices, as a mean is not
            sync_dist=True,
            batch_size=1,
        )
