"""What all compiled kernels share: options of the compiler, and a way to say that it works.

Imported only when used, since Numba is. Numba compiles again when the file of a function changes, but not when a file it
calls into does: after an edit, empty the caches (``__pycache__/*.nb?``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from numba.core import event

__all__ = ["KERNEL_OPTIONS", "when_compiled"]

# Without "nnan" and "ninf": infinite bounds are answers, and what is not finite has to stay so.
KERNEL_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "fastmath": {"reassoc", "contract", "nsz"},
    "error_model": "numpy",
}


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
