"""The matrix a branch multiplies, from what the network is given."""

from __future__ import annotations

from torch import Tensor

from torch_strongdual.errors import InvalidInputError, ShapeError

__all__ = ["check_is_tensor", "flat_branch_inputs"]


def check_is_tensor(inputs: object) -> None:
    """Raise unless ``inputs`` is a tensor."""
    if not isinstance(inputs, Tensor):
        raise InvalidInputError(
            f"The input is of type {type(inputs).__name__}; expected a torch.Tensor. Convert it, for example with "
            "`torch.as_tensor(inputs, dtype=torch.float32)`."
        )


def flat_branch_inputs(inputs: Tensor, in_features: int, *, flatten: bool) -> Tensor:  # shape: (num_samples, in_features)
    """Return ``inputs`` as a matrix, all dimensions but the features merged.

    Args:
        inputs: Shape ``(..., in_features)``; with ``flatten``, ``(num_samples, ...)``.
        in_features: Width of the first layer.
        flatten: Whether all dimensions behind the first one are features.

    Raises:
        ShapeError: If ``inputs`` does not have that many features.
        InvalidInputError: If it is no tensor.
    """
    check_is_tensor(inputs)
    if flatten:
        flat = inputs.flatten(1) if inputs.ndim >= 2 else inputs
        if flat.ndim != 2 or flat.shape[1] != in_features:
            raise ShapeError(
                f"The input has shape {tuple(inputs.shape)}; expected (num_samples, ...) with {in_features} numbers a sample, "
                "which nn.Flatten makes the features."
            )
        return flat
    if inputs.ndim == 0 or inputs.shape[-1] != in_features:
        raise ShapeError(f"The input has shape {tuple(inputs.shape)}; expected (..., {in_features}), features last.")
    return inputs if inputs.ndim == 2 else inputs.reshape(-1, in_features)
