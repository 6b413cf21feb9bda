"""Holding a module without owning it."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["SharedModule"]


class SharedModule:
    """Refers to a module, so that the holder does not register it as a part of itself.

    Copies refer to the same module; only if the module is copied along, as part of a larger one, they refer to its copy.
    Pickling takes the module along.

    Args:
        module: What is referred to.
    """

    __slots__ = ("module",)

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedModule:
        return SharedModule(memo.get(id(self.module), self.module))
