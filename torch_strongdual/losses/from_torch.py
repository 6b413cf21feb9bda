"""From a torch loss module and targets to the loss with its conjugate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from torch_strongdual._checks import check_finite, check_floating
from torch_strongdual.errors import InvalidInputError, ShapeError, UnsupportedLossError
from torch_strongdual.losses._class_targets import class_targets
from torch_strongdual.losses.abstract_dual_loss import AbstractDualLoss
from torch_strongdual.losses.half_squared_loss import HalfSquaredLoss
from torch_strongdual.losses.huber_family import HuberFamilyLoss
from torch_strongdual.losses.logistic_loss import LogisticLoss
from torch_strongdual.losses.softmax_loss import SoftmaxLoss

__all__ = ["conjugate_loss"]


def conjugate_loss(loss: nn.Module, targets: Tensor, *, num_outputs: int) -> AbstractDualLoss:
    """Bind a training loss to its targets and find its conjugate.

    Supported are :class:`~torch.nn.MSELoss`, :class:`~torch.nn.HuberLoss`, :class:`~torch.nn.SmoothL1Loss`,
    :class:`~torch.nn.L1Loss`, :class:`~torch.nn.BCEWithLogitsLoss` (``pos_weight`` included),
    :class:`~torch.nn.CrossEntropyLoss` (``weight`` and ``label_smoothing`` included) and
    :class:`~torch_strongdual.losses.HalfSquaredLoss`, with reduction ``"mean"`` or ``"sum"``. The deprecated arguments
    ``size_average`` and ``reduce`` are what torch makes of them: it turns them into ``reduction``.

    Targets of shape ``(num_samples,)`` are taken as a column if there is one output. Torch itself would broadcast them against
    outputs of shape ``(num_samples, 1)``, and compare every sample with every target (it warns); the loss here is the one
    meant, sample by sample.

    Args:
        loss: An instance of exactly one of these classes; subclasses may compute something else and are refused.
        targets: Numbers ``(num_samples, num_outputs)``, or for cross-entropy int64 class labels ``(num_samples,)`` or class
            probabilities ``(num_samples, num_outputs)``. Any floating dtype: conversion to float64 is exact.
        num_outputs: Columns of the outputs.

    Returns:
        The loss in float64, on the device of the targets.

    Raises:
        UnsupportedLossError: If the module, or an option of it, has no conjugate here.
        ShapeError: If targets and ``num_outputs`` do not fit.
        InvalidInputError: If targets hold what the loss is not defined for.

    Example:
        >>> import torch
        >>> dual_loss = conjugate_loss(nn.MSELoss(), torch.tensor([1.0, 2.0]), num_outputs=1)
        >>> dual_loss.value(torch.zeros(2, 1)).item()
        2.5
    """
    if not (isinstance(num_outputs, int) and num_outputs >= 1):
        raise InvalidInputError(f"`num_outputs` is {num_outputs!r}; expected an integer >= 1.")
    if isinstance(loss, type) and loss in _CONVERTERS:
        raise UnsupportedLossError(
            f"The loss is the class {_class_name(loss)}; expected an instance of it: `{loss.__name__}()`."
        )
    convert = _CONVERTERS.get(type(loss))
    if convert is None or "forward" in vars(loss):
        raise UnsupportedLossError(
            f"The loss is of class {_class_name(loss)}; expected an instance of one of {', '.join(_supported_names())} "
            "(not of a subclass, nor with a forward of its own, whose values cannot be known). Choose one of these, or "
            "implement AbstractDualLoss."
        )
    if not isinstance(targets, Tensor):
        raise InvalidInputError(f"`targets` is of class {type(targets).__name__}; expected a tensor.")
    if targets.numel() == 0:
        raise InvalidInputError(f"`targets` is empty (shape {tuple(targets.shape)}); expected at least one sample.")
    reduction = getattr(loss, "reduction", "sum")
    if reduction not in ("mean", "sum"):
        raise UnsupportedLossError(
            f"{type(loss).__name__} has reduction {reduction!r}; expected 'mean' or 'sum', because an objective is one number."
        )
    return convert(loss, targets.detach(), num_outputs)


def _class_name(loss: object) -> str:
    cls = loss if isinstance(loss, type) else type(loss)
    return f"{cls.__module__}.{cls.__qualname__}"


def _supported_names() -> list[str]:
    return [cls.__name__ for cls in _CONVERTERS]


def _as_columns(targets: Tensor, num_outputs: int) -> Tensor:
    """Real targets as a matrix of ``num_outputs`` columns."""
    check_floating("targets", targets)
    columns = targets[:, None] if targets.ndim == 1 and num_outputs == 1 else targets
    if columns.ndim != 2 or columns.shape[1] != num_outputs:
        raise ShapeError(
            f"`targets` has shape {tuple(targets.shape)} for {num_outputs} outputs; expected (num_samples, {num_outputs})"
            f"{' or (num_samples,)' if num_outputs == 1 else ''}, that is one number for each output."
        )
    check_finite("targets", targets)
    return columns


def _normalizer(loss: nn.Module, columns: Tensor) -> float:
    return float(columns.numel()) if loss.reduction == "mean" else 1.0


def _huber_family(
    loss: nn.Module, targets: Tensor, num_outputs: int, *, width: float, slope_bound: float, normalizer: float | None = None
) -> HuberFamilyLoss:
    columns = _as_columns(targets, num_outputs)
    number = _normalizer(loss, columns) if normalizer is None else normalizer
    return HuberFamilyLoss(columns, normalizer=number, width=width, slope_bound=slope_bound)


def _from_mse(loss: nn.Module, targets: Tensor, num_outputs: int) -> HuberFamilyLoss:
    return _huber_family(loss, targets, num_outputs, width=0.5, slope_bound=math.inf)


def _from_half_squared(loss: nn.Module, targets: Tensor, num_outputs: int) -> HuberFamilyLoss:
    return _huber_family(loss, targets, num_outputs, width=1.0, slope_bound=math.inf, normalizer=1.0)


def _from_l1(loss: nn.Module, targets: Tensor, num_outputs: int) -> HuberFamilyLoss:
    return _huber_family(loss, targets, num_outputs, width=0.0, slope_bound=1.0)


def _from_huber(loss: Any, targets: Tensor, num_outputs: int) -> HuberFamilyLoss:
    return _huber_family(loss, targets, num_outputs, width=1.0, slope_bound=float(loss.delta))


def _from_smooth_l1(loss: Any, targets: Tensor, num_outputs: int) -> HuberFamilyLoss:
    return _huber_family(loss, targets, num_outputs, width=float(loss.beta), slope_bound=1.0)


def _from_bce(loss: Any, targets: Tensor, num_outputs: int) -> LogisticLoss:
    if loss.weight is not None:
        raise UnsupportedLossError(
            f"BCEWithLogitsLoss has `weight` of shape {tuple(loss.weight.shape)}, which rescales elements; expected None. "
            "Use `pos_weight` to weigh classes."
        )
    columns = _as_columns(targets, num_outputs)
    return LogisticLoss(columns, normalizer=_normalizer(loss, columns), positive_weight=loss.pos_weight)


def _from_cross_entropy(loss: Any, targets: Tensor, num_outputs: int) -> SoftmaxLoss:
    prepared = class_targets(
        targets,
        num_classes=num_outputs,
        weight=loss.weight,
        label_smoothing=float(loss.label_smoothing),
        ignore_index=int(loss.ignore_index),
    )
    return SoftmaxLoss(prepared.rows, normalizer=prepared.mean_normalizer if loss.reduction == "mean" else 1.0)


_CONVERTERS: Mapping[type[nn.Module], Callable[[Any, Tensor, int], AbstractDualLoss]] = MappingProxyType(
    {
        nn.MSELoss: _from_mse,
        nn.HuberLoss: _from_huber,
        nn.SmoothL1Loss: _from_smooth_l1,
        nn.L1Loss: _from_l1,
        nn.BCEWithLogitsLoss: _from_bce,
        nn.CrossEntropyLoss: _from_cross_entropy,
        HalfSquaredLoss: _from_half_squared,
    }
)
