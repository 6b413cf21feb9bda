"""Typed fronts of calls that torch leaves untyped."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def backward(loss: Tensor) -> None:
    """Call ``loss.backward()``."""
    loss.backward()  # type: ignore[no-untyped-call]


def num_distinct(values: Tensor) -> int:
    """Number of distinct entries along the first axis."""
    return len(values.unique(dim=0))  # type: ignore[no-untyped-call]


def jacobian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Jacobian of ``function`` by reverse-mode autograd, one row at a time."""
    result: Tensor = torch.autograd.functional.jacobian(function, at)  # type: ignore[no-untyped-call]
    return result
