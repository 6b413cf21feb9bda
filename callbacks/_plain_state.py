"""State as checkpoints may hold it."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["plain_state"]


def plain_state(value: Any) -> Any:
    """Copy ``value`` with nothing but tensors on the CPU, builtin numbers, strings, lists, tuples and dicts.

    Lightning loads checkpoints with ``weights_only=True``. One NumPy number in the state, which passes for a float everywhere
    else, would make the whole checkpoint unreadable.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {str(key): plain_state(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain_state(entry) for entry in value)
    return _plain_scalar(value)


def _plain_scalar(value: Any) -> bool | int | float | str | None:
    value = value.item() if hasattr(value, "item") else value  # NumPy's
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else str(value)
