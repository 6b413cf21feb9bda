"""Data for certification: tensors, or everything a data loader yields, in its order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch_strongdual.errors import InvalidInputError, ShapeError

__all__ = ["gather_batches", "gathered"]


def gathered(inputs: Tensor | Iterable[Any], targets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return inputs and targets as two tensors.

    Args:
        inputs: A tensor, or an iterable of ``(inputs, targets)`` batches such as a data loader.
        targets: A tensor, or ``None`` if ``inputs`` yields batches.

    Raises:
        InvalidInputError: If there are no data, or batches are no pairs of tensors.
    """
    if isinstance(inputs, Tensor):
        if not isinstance(targets, Tensor):
            raise InvalidInputError(
                f"`targets` is {type(targets).__name__}; expected a tensor, since `inputs` is one. `torch.as_tensor` makes one "
                "of numbers; classes are numbered from 0."
            )
        return _checked(inputs, targets)
    if targets is not None:
        raise InvalidInputError(
            f"`inputs` is {type(inputs).__name__} beside `targets` of type {type(targets).__name__}; expected two tensors "
            "(`torch.as_tensor` makes them), or batches and no targets."
        )
    if not isinstance(inputs, Iterable):
        raise InvalidInputError(
            f"`inputs` is {type(inputs).__name__}; expected a tensor, or an iterable of (inputs, targets) batches. "
            "`DataLoader(dataset, batch_size=...)` makes one of a dataset."
        )
    return _checked(*gather_batches(inputs))


def _checked(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Refuse tensors that hold no numbers to compute with."""
    for name, tensor in (("inputs", inputs), ("targets", targets)):
        if tensor.layout != torch.strided:
            raise InvalidInputError(
                f"`{name}` has layout {tensor.layout}; expected a dense tensor. Convert with `.to_dense()`."
            )
        if tensor.is_nested:
            raise InvalidInputError(f"`{name}` is a nested tensor; expected one block of numbers, with equally many a sample.")
        if tensor.is_quantized or (tensor.is_floating_point() and tensor.element_size() == 1):
            raise InvalidInputError(f"`{name}` has dtype {tensor.dtype}; expected one to compute with, such as torch.float32.")
        if tensor.is_meta:
            raise InvalidInputError(f"`{name}` is on the meta device and holds no numbers; expected real data.")
    return _recordable(inputs), _recordable(targets)


def _recordable(tensor: Tensor) -> Tensor:
    """A tensor made in inference mode cannot be used where gradients are recorded; its copy can."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def gather_batches(batches: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """Concatenate ``(inputs, targets)`` batches, on the CPU.

    Raises:
        InvalidInputError: If there are none, or they are no pairs of tensors.
        ShapeError: If their shapes do not fit together.
    """
    columns: tuple[list[Tensor], list[Tensor]] = ([], [])
    for index, batch in enumerate(batches):
        is_pair = isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)
        if not is_pair:
            raise InvalidInputError(f"Batch {index} is {_described(batch)}; expected a pair of tensors (inputs, targets).")
        for column, part in zip(columns, batch, strict=True):
            column.append(part.detach().cpu())
    if not columns[0]:
        raise InvalidInputError("The data loader yields no batches; expected at least one sample.")
    try:
        return torch.cat(columns[0]), torch.cat(columns[1])
    except RuntimeError as error:
        raise ShapeError(f"The batches do not fit together: {error}") from error


def _described(batch: object) -> str:
    """What a batch is, by the types of its parts."""
    kind = f"of type {type(batch).__name__}"
    if isinstance(batch, Mapping):
        return f"{kind}, with {', '.join(map(repr, batch)) or 'nothing'}"
    if isinstance(batch, (tuple, list)):
        return f"{kind}, of {', '.join(type(part).__name__ for part in batch) or 'nothing'}"
    return kind
