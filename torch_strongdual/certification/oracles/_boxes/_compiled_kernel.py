"""How the kernels of the box searches are compiled.

Imported only when used, since Numba is.
"""

from __future__ import annotations

from typing import Any

from numba import njit
from numba.core import options

from torch_strongdual._compiled_kernel import KERNEL_OPTIONS

__all__ = ["kernel", "part", "small_part"]


def _without_reference_counts() -> dict[str, Any]:
    """An undocumented option that spares counting references to parts of arrays, a fifth of the time; empty if it is gone."""
    return {"_nrt": False} if hasattr(getattr(options, "DefaultOptions", None), "_nrt") else {}


_OPTIONS = KERNEL_OPTIONS | _without_reference_counts()

# Placed into their callers: a call copies the descriptions of a dozen arrays, and calls were a sixth of the time. Entries from
# Python would take longer to compile.
_INSIDE = {"forceinline": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

#: Decorator of what Python calls.
kernel = njit(**_OPTIONS)

#: Decorator of what only kernels call.
part = njit(**_OPTIONS, **_INSIDE)

#: The same for sums of a few terms, which are slower in vectors: these are summed in order.
small_part = njit(**{**_OPTIONS, "fastmath": {"contract", "nsz"}}, **_INSIDE)
