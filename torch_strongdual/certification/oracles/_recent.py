"""A small memory of what came last, for work that need not be done twice."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Generic, TypeVar

__all__ = ["Recent"]

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """The latest values by their keys. Of too many, those whose keys came first leave.

    Args:
        capacity: Values kept.

    Example:
        >>> recent = Recent[str, int](capacity=2)
        >>> for key in "abc":
        ...     recent.put(key, ord(key))
        >>> recent.get("a"), recent.take("c"), recent.get("c")
        (None, 99, None)
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles start empty: what is kept here only saves time."""
        return Recent, (self._capacity,)

    def __len__(self) -> int:
        """Values kept now."""
        return len(self._values)

    def get(self, key: Key) -> Value | None:
        """The value of ``key``, which stays; ``None`` if there is none."""
        return self._values.get(key)

    def put(self, key: Key, value: Value) -> None:
        """Keep ``value``, in place of another one of this key."""
        self._values[key] = value
        while len(self._values) > self._capacity:
            self._values.popitem(last=False)

    def take(self, key: Key) -> Value | None:
        """The value of ``key``, which is no longer here afterwards: no two threads get the same."""
        return self._values.pop(key, None)

    def items(self) -> list[tuple[Key, Value]]:
        """All pairs, oldest first."""
        return list(self._values.items())
