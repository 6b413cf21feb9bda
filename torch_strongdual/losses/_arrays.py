"""Arguments of losses as float64 arrays on the CPU, where sums are exact, and results as tensors."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from torch_strongdual._checks import check_finite, check_floating, check_ndim, check_shape
from torch_strongdual.errors import InvalidInputError
from torch_strongdual.losses._rounding import Array

__all__ = ["as_array", "as_float64", "as_tensor", "check_max_scale", "checked_targets", "finite_array"]

_MEANING = "(num_samples, out_features), the shape of the targets"


def checked_targets(targets: Tensor) -> Tensor:
    """A float64 copy of ``targets``, after a check that they are a finite matrix of at least one number.

    Raises:
        InvalidInputError: If they are empty, not floating or not finite.
        ShapeError: If they are no matrix.
    """
    check_floating("targets", targets)
    check_ndim("targets", targets, 2, "(num_samples, out_features)")
    if targets.numel() == 0:
        raise InvalidInputError(f"`targets` is empty (shape {tuple(targets.shape)}); expected at least one sample and output.")
    check_finite("targets", targets)
    return targets.detach().to(torch.float64, copy=True)


def as_float64(name: str, tensor: Tensor, targets: Tensor) -> Tensor:
    """``tensor`` in float64, differentiable, after a check that it is shaped as ``targets``."""
    check_floating(name, tensor)
    check_shape(name, tensor, tuple(targets.shape), _MEANING)
    return tensor.to(torch.float64)


def as_array(name: str, tensor: Tensor, targets: Tensor) -> Array:
    """A float64 array of ``tensor``, which may hold NaN; not to be written to."""
    array: Array = np.asarray(as_float64(name, tensor.detach(), targets).cpu().numpy())
    return array


def finite_array(name: str, tensor: Tensor, targets: Tensor) -> Array:
    """A float64 array of ``tensor``, which must be finite."""
    check_finite(name, tensor)
    return as_array(name, tensor, targets)


def as_tensor(array: Array, targets: Tensor) -> Tensor:
    """``array`` as a float64 tensor of its own memory, on the device of ``targets``."""
    return torch.tensor(array, dtype=torch.float64, device=targets.device)


def check_max_scale(max_scale: float) -> None:
    """Raise :class:`InvalidInputError` unless ``max_scale`` is zero or more (infinity allowed)."""
    if math.isnan(max_scale) or max_scale < 0:
        raise InvalidInputError(f"`max_scale` is {max_scale!r}; expected a number >= 0, or infinity.")
