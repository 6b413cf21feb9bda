"""ReLU networks of any depth on rank-one data with a known optimum."""

from __future__ import annotations

import torch

from torch_strongdual._checks import check_positive_finite
from torch_strongdual.nn.branch_spec import BranchActivation, BranchSpec
from torch_strongdual.problems._plant import check_count, plant, random_normal
from torch_strongdual.problems.planted_problem import PlantedProblem

__all__ = ["planted_rank_one_relu"]


def planted_rank_one_relu(
    num_samples: int = 12,
    in_features: int = 4,
    out_features: int = 1,
    *,
    num_layers: int = 2,
    output_bias: bool = False,
    path_decay: float = 0.1,
    reduction: str = "mean",
    generator: torch.Generator | None = None,
) -> PlantedProblem:
    r"""Parallel ReLU network on data :math:`X = t a'` with :math:`\|a\|_2 = 1`.

    Only two rays matter: the features of a branch are :math:`p\,t_+ + q\,t_-`, and unit norm means :math:`p + q \le 1` at
    any depth and width (by the Cauchy-Schwarz inequality, layer by layer). So the dual norm is
    :math:`\max(\|\Lambda' t_+\|_2, \|\Lambda' t_-\|_2)`. Both rays are active here.

    Args:
        num_samples: Four or more, so that both rays have samples to balance.
        in_features: Columns of the inputs.
        out_features: Columns of the targets.
        num_layers: Number of linear layers, two or more.
        output_bias: Whether the network has an unpenalised output bias.
        path_decay: Strength :math:`\beta` of the path penalty.
        reduction: Of the squared error, ``"mean"`` or ``"sum"``.
        generator: Source of randomness; torch's own if ``None``.

    Returns:
        The problem, float64 on the CPU, with two optimal branches of hidden widths one.

    Raises:
        InvalidInputError: If an argument is outside the range given above.

    Example:
        >>> problem = planted_rank_one_relu(10, 3, num_layers=3, generator=torch.Generator().manual_seed(0))
        >>> int(torch.linalg.matrix_rank(problem.inputs))
        1
    """
    check_count("num_samples", num_samples, 4)
    check_count("in_features", in_features, 1)
    check_count("out_features", out_features, 1)
    check_count("num_layers", num_layers, 2)
    check_positive_finite("path_decay", path_decay)
    axis = random_normal(in_features, generator=generator)
    axis = axis / axis.norm()
    on_first_ray = torch.randperm(num_samples, generator=generator) < (num_samples + 1) // 2
    size = random_normal(num_samples, generator=generator).abs() + 0.1
    rays = torch.stack([torch.where(on_first_ray, size, 0.0), torch.where(on_first_ray, 0.0, size)])
    hidden = [torch.stack([axis, -axis])[:, None, :]]
    hidden += [torch.ones(2, 1, 1, dtype=torch.float64) for _ in range(num_layers - 2)]
    return plant(
        (rays[0] - rays[1])[:, None] * axis,
        BranchSpec(
            widths=(in_features, *[1] * (num_layers - 1), out_features),
            activations=(BranchActivation(),) * (num_layers - 1),
            output_bias=output_bias,
        ),
        hidden,
        _dual_point(rays, out_features, output_bias, path_decay, generator),
        path_decay=path_decay,
        reduction=reduction,
        generator=generator,
    )


def _dual_point(
    rays: torch.Tensor, out_features: int, output_bias: bool, path_decay: float, generator: torch.Generator | None
) -> torch.Tensor:  # shape: (num_samples, out_features)
    """Draw rows at random and scale those of each ray until its dual norm is ``path_decay`` (centre them first for a bias)."""
    dual_point = random_normal(rays.shape[1], out_features, generator=generator)
    for ray in rays:
        members = ray > 0
        rows = dual_point[members]
        rows = rows - rows.mean(dim=0) if output_bias else rows
        dual_point[members] = rows * (path_decay / (ray[members] @ rows).norm())
    return dual_point
