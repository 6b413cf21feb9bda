"""Targets of cross-entropy, in all forms torch takes them, as one matrix of class targets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from torch_strongdual._checks import check_finite
from torch_strongdual.errors import InvalidInputError, ShapeError, UnsupportedLossError

__all__ = ["ClassTargets", "class_targets"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassTargets:
    r"""Rows :math:`T_i` such that torch's loss of a sample is :math:`-\langle T_i, \log p_i \rangle`.

    Args:
        rows: Float64, weights and smoothing included.
        mean_normalizer: What torch's mean divides by: the sum of the weights of the labels if targets are labels, the number of
            samples if they are probabilities.
    """

    rows: Tensor  # shape: (num_samples, num_classes)
    mean_normalizer: float


def class_targets(
    targets: Tensor, *, num_classes: int, weight: Tensor | None, label_smoothing: float, ignore_index: int
) -> ClassTargets:
    """Targets of all forms as rows.

    Args:
        targets: Labels, int64, shape ``(num_samples,)``; or probabilities, shape ``(num_samples, num_classes)``.
        num_classes: Columns of the outputs.
        weight: One number a class, or ``None``.
        label_smoothing: In [0, 1].
        ignore_index: A label that must not occur.
    """
    class_weight = _checked_weight(weight, num_classes, targets)
    if targets.is_floating_point():
        _check_probabilities(targets, num_classes)
        rows = targets.to(torch.float64)
        normalizer = float(len(targets))
    else:
        _check_labels(targets, num_classes, ignore_index)
        rows = one_hot(targets, num_classes).to(torch.float64)
        normalizer = math.fsum(class_weight[targets].tolist())
    if normalizer == 0:
        raise InvalidInputError(
            "The class weights of all labels are zero; expected a sample of positive weight to average over."
        )
    if label_smoothing:
        rows = rows * (1 - label_smoothing) + label_smoothing / num_classes
    return ClassTargets(rows=rows * class_weight, mean_normalizer=normalizer)


def _checked_weight(weight: Tensor | None, num_classes: int, targets: Tensor) -> Tensor:
    if weight is None:
        return torch.ones(num_classes, dtype=torch.float64, device=targets.device)
    if tuple(weight.shape) != (num_classes,):
        raise ShapeError(
            f"CrossEntropyLoss has `weight` of shape {tuple(weight.shape)}; expected ({num_classes},), one for each class."
        )
    check_finite("weight", weight)
    if (weight < 0).any():
        raise InvalidInputError(f"CrossEntropyLoss has a class weight {weight.min().item():g}; expected weights >= 0.")
    return weight.detach().to(device=targets.device, dtype=torch.float64)


def _check_probabilities(targets: Tensor, num_classes: int) -> None:
    if targets.ndim == 1:
        raise InvalidInputError(
            f"`targets` has shape {tuple(targets.shape)} and dtype {targets.dtype}; expected int64 class labels of this "
            f"shape, or class probabilities of shape (num_samples, {num_classes}). Convert labels with `.long()`."
        )
    if targets.ndim != 2 or targets.shape[1] != num_classes:
        raise _unfit_shape(targets, num_classes)
    check_finite("targets", targets)
    outside = int(((targets < 0) | (targets > 1)).sum())
    if outside:
        raise InvalidInputError(
            f"`targets` holds {outside} of {targets.numel()} numbers outside [0, 1] (from {targets.min().item():g} to "
            f"{targets.max().item():g}); expected class probabilities."
        )


def _check_labels(targets: Tensor, num_classes: int, ignore_index: int) -> None:
    if targets.ndim != 1:
        raise _unfit_shape(targets, num_classes)
    if targets.dtype != torch.int64:
        raise InvalidInputError(f"`targets` has dtype {targets.dtype}; expected int64 class labels. Convert with `.long()`.")
    ignored = int((targets == ignore_index).sum())
    if ignored:
        raise UnsupportedLossError(
            f"`targets` holds {ignored} labels equal to `ignore_index` {ignore_index}; expected none. Remove these samples, "
            "or set `ignore_index` to a number that does not occur."
        )
    outside = targets[(targets < 0) | (targets >= num_classes)]
    if outside.numel():
        raise InvalidInputError(
            f"`targets` holds {outside.numel()} of {targets.numel()} labels outside the classes, first {outside[0].item()}; "
            f"expected labels from 0 to {num_classes - 1} for {num_classes} outputs."
        )


def _unfit_shape(targets: Tensor, num_classes: int) -> ShapeError:
    return ShapeError(
        f"`targets` has shape {tuple(targets.shape)} and dtype {targets.dtype}; expected int64 class labels (num_samples,), or "
        f"class probabilities (num_samples, {num_classes}). Targets of more dimensions are not supported: use one row a sample."
    )
