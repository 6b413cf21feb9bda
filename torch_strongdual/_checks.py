"""Argument checks with one message style: what was given, what was expected, what to do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torch_strongdual.errors import InvalidInputError, ShapeError

__all__ = [
    "check_finite",
    "check_floating",
    "check_in",
    "check_ndim",
    "check_non_negative",
    "check_positive",
    "check_positive_finite",
    "check_shape",
]


def check_shape(name: str, tensor: Tensor, expected: tuple[int | None, ...], meaning: str) -> None:
    """Raise :class:`ShapeError` unless ``tensor`` has the ``expected`` shape (``None`` stands for any length)."""
    fits = tensor.ndim == len(expected) and all(e is None or e == s for e, s in zip(expected, tensor.shape, strict=True))
    if not fits:
        wanted = ", ".join("*" if e is None else str(e) for e in expected)
        raise ShapeError(f"`{name}` has shape {tuple(tensor.shape)}; expected ({wanted}), that is {meaning}.")


def check_ndim(name: str, tensor: Tensor, ndim: int, meaning: str) -> None:
    """Raise :class:`ShapeError` unless ``tensor`` has ``ndim`` dimensions."""
    if tensor.ndim != ndim:
        raise ShapeError(
            f"`{name}` has {tensor.ndim} dimensions (shape {tuple(tensor.shape)}); expected {ndim}, that is {meaning}."
        )


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise :class:`InvalidInputError` if ``tensor`` holds NaN or infinity, saying how many."""
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise InvalidInputError(
            f"`{name}` holds {bad} non-finite of {tensor.numel()} numbers (shape {tuple(tensor.shape)}); "
            "expected finite numbers. Clean the data, or lower the learning rate if these are weights."
        )


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise :class:`InvalidInputError` unless ``tensor`` holds real floating point numbers."""
    if not tensor.is_floating_point():
        raise InvalidInputError(f"`{name}` has dtype {tensor.dtype}; expected floating point. Convert it with `.float()`.")


def check_non_negative(name: str, value: float) -> None:
    """Raise :class:`InvalidInputError` unless ``value`` is a finite number, zero or more."""
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
        raise InvalidInputError(f"`{name}` is {value!r}; expected a finite number >= 0.{_conversion(value)}")


def check_positive(name: str, value: float) -> None:
    """Raise :class:`InvalidInputError` unless ``value`` is a number above zero (infinity allowed)."""
    if not (isinstance(value, (int, float)) and value > 0):
        raise InvalidInputError(f"`{name}` is {value!r}; expected a number > 0.{_conversion(value)}")


def check_positive_finite(name: str, value: float) -> None:
    """Raise :class:`InvalidInputError` unless ``value`` is a finite number above zero."""
    check_positive(name, value)
    if math.isinf(value):
        raise InvalidInputError(f"`{name}` is inf; expected a finite number > 0.")


def check_in(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise :class:`InvalidInputError` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise InvalidInputError(f"`{name}` is {value!r}; expected one of {', '.join(map(repr, allowed))}.")


def _conversion(value: object) -> str:
    """What to do about a number that is none of Python's, such as a tensor or a numpy.float32."""
    is_python = isinstance(value, (int, float)) or not hasattr(value, "__float__")
    return "" if is_python else " Convert it with `float(...)`."
