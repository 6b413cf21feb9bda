"""Gradient ascent on the dual norm's objective over explicit branches, many at a time. Never a proof."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.functional.branch_features import branch_features

__all__ = ["ascend_branches", "branch_images", "unit_layers"]


def unit_layers(weights: Sequence[Tensor]) -> list[Tensor]:
    """Scale every layer of every branch to Frobenius norm one; zero layers stay zero."""
    norms = [torch.linalg.vector_norm(w, dim=(1, 2), keepdim=True) for w in weights]
    return [torch.where(norm > 0, w / torch.where(norm > 0, norm, 1.0), 0.0) for w, norm in zip(weights, norms, strict=True)]


def branch_images(
    inputs: Tensor,  # shape: (num_samples, in_features)
    duals: Tensor,  # shape: (num_samples, out_features)
    weights: Sequence[Tensor],  # L - 1 of shape (num_branches, out, in)
    slopes: Sequence[float],
    masks: Tensor | None = None,  # shape: (num_branches, num_samples)
) -> Tensor:  # shape: (num_branches, out_features, hidden_{L-1})
    r"""Images :math:`\Lambda' \phi_k(X)` of branches; their Frobenius norm is what the dual norm maximises.

    Example:
        >>> branch_images(torch.eye(2), torch.ones(2, 1), [torch.tensor([[[0.6, -0.8]]])], [0.0])
        tensor([[[0.6000]]])
    """
    features = branch_features(inputs, weights, slopes, masks)
    return torch.einsum("nc,knh->kch", duals, features)


def ascend_branches(
    inputs: Tensor,  # shape: (num_samples, in_features)
    duals: Tensor,  # shape: (num_samples, out_features)
    weights: Sequence[Tensor],  # L - 1 of shape (num_branches, out, in)
    slopes: Sequence[float],
    masks: Tensor | None = None,  # shape: (num_branches, num_samples)
    *,
    deadline: Deadline,
    num_steps: int = 80,
) -> list[Tensor]:
    """Better hidden layers of norm one, branch by branch: never worse than those given.

    Normalised gradient steps of shrinking length on each layer; the best point of each trajectory is kept, so steps
    across kinks do no harm.

    Args:
        inputs: The matrix the first layer multiplies, float64.
        duals: Dual point, float64.
        weights: Hidden layers to start from.
        slopes: Slope left of zero behind each of them.
        masks: Products of gates.
        deadline: Returns the best so far when it expires.
        num_steps: Number of steps.
    """
    layers = unit_layers(weights)
    best, best_values = layers, _values(branch_images(inputs, duals, layers, slopes, masks))
    for step in range(num_steps):
        if deadline.expired:
            break
        layers = [layer.detach().requires_grad_() for layer in layers]
        with torch.enable_grad():
            values = _values(branch_images(inputs, duals, layers, slopes, masks))
            gradients = torch.autograd.grad(values.sum(), layers)
        length = 0.6 * 0.94**step
        moved = [w.detach() + length * g for w, g in zip(layers, unit_layers(gradients), strict=True)]
        layers = unit_layers(moved)
        values = _values(branch_images(inputs, duals, layers, slopes, masks))
        is_better = values > best_values
        best = [torch.where(is_better[:, None, None], new, old) for new, old in zip(layers, best, strict=True)]
        best_values = torch.where(is_better, values, best_values)
    return best


def _values(images: Tensor) -> Tensor:  # shape: (num_branches,)
    values: Tensor = torch.linalg.vector_norm(images, dim=(1, 2))
    return values
