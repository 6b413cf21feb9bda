"""How the kernels of the box searches are compiled.

Imported only when used, since Numba is. Numba compiles again when the file of a function changes, but not when a file it
calls into does: after an edit, empty the caches (``__pycache__/*.nb?``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from numba import njit
from numba.core import event, options

__all__ = ["kernel", "part", "small_part", "when_compiled"]

# Without "nnan" and "ninf": infinite bounds are answers.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "fastmath": {"reassoc", "contract", "nsz"},
    "error_model": "numpy",
}


def _without_reference_counts() -> dict[str, Any]:
    """An undocumented option that spares counting references to parts of arrays, a fifth of the time; empty if it is gone."""
    return {"_nrt": False} if hasattr(getattr(options, "DefaultOptions", None), "_nrt") else {}


_OPTIONS |= _without_reference_counts()

# Placed into their callers: a call copies the descriptions of a dozen arrays, and calls were a sixth of the time. Entries from
# Python would take longer to compile.
_INSIDE = {"forceinline": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

#: Decorator of what Python calls.
kernel = njit(**_OPTIONS)

#: Decorator of what only kernels call.
part = njit(**_OPTIONS, **_INSIDE)

#: The same for sums of a few terms, which are slower in vectors: these are summed in order.
small_part = njit(**{**_OPTIONS, "fastmath": {"contract", "nsz"}}, **_INSIDE)


def when_compiled(act: Callable[[], None]) -> AbstractContextManager[object]:
    """Within this context ``act`` is called before the first function is compiled, and not if all come from the cache."""
    context: AbstractContextManager[object] = event.install_listener("numba:compile", _First(act))
    return context


class _First(event.Listener):  # type: ignore[misc]
    def __init__(self, act: Callable[[], None]) -> None:
        self._act: Callable[[], None] | None = act

    def on_start(self, event: object) -> None:
        act, self._act = self._act, None
        if act is not None:
            act()

    def on_end(self, event: object) -> None:
        """Of no interest."""
