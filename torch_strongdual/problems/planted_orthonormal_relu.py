"""Two-layer ReLU networks on orthonormal samples with a known optimum."""

from __future__ import annotations

import torch

from torch_strongdual._checks import check_positive_finite
from torch_strongdual.nn.branch_spec import BranchActivation, BranchSpec
from torch_strongdual.problems._plant import check_count, plant, random_normal
from torch_strongdual.problems.planted_problem import PlantedProblem

__all__ = ["planted_orthonormal_relu"]


def planted_orthonormal_relu(
    num_samples: int = 8,
    in_features: int = 10,
    *,
    path_decay: float = 0.1,
    reduction: str = "mean",
    generator: torch.Generator | None = None,
) -> PlantedProblem:
    r"""Parallel two-layer ReLU network with one output, on samples with :math:`X X' = I`.

    The dual norm is :math:`\max(\|\lambda_+\|_2, \|\lambda_-\|_2)`, attained at :math:`u = X'\lambda_\pm / \|\lambda_\pm\|`;
    both parts are active here, so the optimum has one branch of each sign.

    Args:
        num_samples: Two or more, at most ``in_features``.
        in_features: Columns of the inputs.
        path_decay: Strength :math:`\beta` of the path penalty.
        reduction: Of the squared error, ``"mean"`` or ``"sum"``.
        generator: Source of randomness; torch's own if ``None``.

    Returns:
        The problem, float64 on the CPU, with two optimal branches of one hidden unit.

    Raises:
        InvalidInputError: If an argument is outside the range given above.

    Example:
        >>> problem = planted_orthonormal_relu(6, 6, generator=torch.Generator().manual_seed(0))
        >>> problem.dual_point.clamp_min(0).norm(), problem.dual_point.clamp_max(0).norm()
        (tensor(0.1000, dtype=torch.float64), tensor(0.1000, dtype=torch.float64))
    """
    check_count("num_samples", num_samples, 2)
    check_count("in_features", in_features, num_samples)
    check_positive_finite("path_decay", path_decay)
    inputs = torch.linalg.qr(random_normal(in_features, num_samples, generator=generator)).Q.T.contiguous()
    size = random_normal(num_samples, generator=generator).abs() + 0.1
    is_positive = torch.randperm(num_samples, generator=generator) < (num_samples + 1) // 2
    parts = torch.stack([torch.where(is_positive, size, 0.0), torch.where(is_positive, 0.0, size)])
    parts = parts / parts.norm(dim=1, keepdim=True)
    return plant(
        inputs,
        BranchSpec(widths=(in_features, 1, 1), activations=(BranchActivation(),)),
        [(parts @ inputs)[:, None, :]],
        path_decay * (parts[0] - parts[1])[:, None],
        path_decay=path_decay,
        reduction=reduction,
        generator=generator,
    )
