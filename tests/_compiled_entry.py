"""Entries from Python into compiled parts, which have none of their own: called directly they would crash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

__all__ = ["callable_part"]


def callable_part(part: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that passes its arguments on to ``part``."""

    @njit
    def entry(*args):  # type: ignore[no-untyped-def]
        return part(*args)

    found: Callable[..., Any] = entry
    return found
