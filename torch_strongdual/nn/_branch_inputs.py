"""The matrix a branch multiplies, from what the network is given."""

from __future__ import annotations

from torch import Tensor

from torch_strongdual.errors import ShapeError

__all__ = ["flat_branch_inputs"]


def flat_branch_inputs(inputs: Tensor, in_features: int, *, flatten: bool) -> Tensor:  # shape: (num_samples, in_features)
    """Return ``inputs`` as a matrix, all dimensions but the features merged.

    Args:
        inputs: Shape ``(..., in_features)``; with ``flatten``, ``(num_samples, ...)``.
        in_features: Width of the first layer.
        flatten: Whether all dimensions behind the first one are features.

    Raises:
        ShapeError: If ``inputs`` does not have that many features.
    """
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
