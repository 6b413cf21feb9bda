"""Parallel linear networks: nuclear-norm regression with a known optimum."""

from __future__ import annotations

import torch

from torch_strongdual.nn.branch_spec import BranchActivation, BranchSpec
from torch_strongdual.problems._plant import check_count, random_normal
from torch_strongdual.problems._plant_masked_linear import plant_masked_linear
from torch_strongdual.problems.planted_problem import PlantedProblem

__all__ = ["planted_linear"]


def planted_linear(
    num_samples: int = 40,
    in_features: int = 5,
    out_features: int = 3,
    *,
    rank: int = 2,
    num_layers: int = 2,
    output_bias: bool = False,
    path_decay: float = 0.1,
    reduction: str = "mean",
    generator: torch.Generator | None = None,
) -> PlantedProblem:
    r"""Parallel linear network of any depth, which is :math:`\min_Z \ell(XZ) + \beta \|Z\|_*`.

    The dual norm is the spectral norm :math:`\|X'\Lambda\|_2`.

    Args:
        num_samples: At least ``in_features``, plus one with an output bias.
        in_features: Columns of the Gaussian inputs.
        out_features: Columns of the targets.
        rank: Rank of the optimal :math:`Z`, and number of optimal branches; at most ``min(in_features, out_features)``.
        num_layers: Number of linear layers, two or more.
        output_bias: Whether the network has an unpenalised output bias.
        path_decay: Strength :math:`\beta` of the path penalty.
        reduction: Of the squared error, ``"mean"`` or ``"sum"``.
        generator: Source of randomness; torch's own if ``None``.

    Returns:
        The problem, float64 on the CPU; its branches have hidden widths of one.

    Raises:
        InvalidInputError: If an argument is outside the range given above.

    Example:
        >>> problem = planted_linear(30, 4, 2, rank=2, generator=torch.Generator().manual_seed(0))
        >>> torch.linalg.matrix_norm(problem.inputs.T @ problem.dual_point, ord=2)
        tensor(0.1000, dtype=torch.float64)
    """
    check_count("in_features", in_features, 1)
    check_count("out_features", out_features, 1)
    check_count("num_layers", num_layers, 2)
    check_count("num_samples", num_samples, in_features + int(output_bias))
    spec = BranchSpec(
        widths=(in_features, *[1] * (num_layers - 1), out_features),
        activations=(BranchActivation(negative_slope=1.0),) * (num_layers - 1),
        output_bias=output_bias,
    )
    inputs = random_normal(num_samples, in_features, generator=generator)
    return plant_masked_linear(inputs, spec, rank=rank, path_decay=path_decay, reduction=reduction, generator=generator)
