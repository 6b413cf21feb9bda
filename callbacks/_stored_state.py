"""Parts of a checkpoint, read so that one of another version, or a damaged one, does not end a fit that resumes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from lightning.pytorch.utilities import rank_zero_warn

from torch_strongdual.errors import StrongDualWarning

from .certification_record import CertificationRecord
from .growth_record import GrowthRecord

__all__ = ["records_as_numbers", "stored_mapping", "stored_records"]

R = TypeVar("R", CertificationRecord, GrowthRecord)


def records_as_numbers(history: Iterable[CertificationRecord | GrowthRecord]) -> list[dict[str, Any]]:
    """Return records as checkpoints hold them."""
    return [dataclasses.asdict(record) for record in history]


def stored_records(kind: type[R], state: Mapping[str, Any]) -> list[R]:
    """Read the history in ``state``, without fields that this version does not know; if it cannot be read, warn.

    Args:
        kind: Of the records.
        state: What ``state_dict`` of the callback gave.

    Returns:
        The records; none if they cannot be read.
    """
    fields = [field.name for field in dataclasses.fields(kind)]
    try:
        return [kind(**{name: numbers[name] for name in fields}) for numbers in state["history"]]
    except (LookupError, TypeError):
        rank_zero_warn(
            f"The history of {kind.__name__}s in the checkpoint is of another version of torch_strongdual, and cannot be read. "
            "Training resumes without it.",
            category=StrongDualWarning,
        )
        return []


def stored_mapping(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the entry ``name``; empty where there is none."""
    value = state.get(name)
    return dict(value) if isinstance(value, Mapping) else {}
