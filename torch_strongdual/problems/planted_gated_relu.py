"""Parallel gated ReLU networks with a known optimum."""

from __future__ import annotations

import torch

from torch_strongdual.nn.branch_spec import BranchActivation, BranchSpec
from torch_strongdual.problems._plant import check_count, random_normal
from torch_strongdual.problems._plant_masked_linear import plant_masked_linear
from torch_strongdual.problems.planted_problem import PlantedProblem

__all__ = ["planted_gated_relu"]


def planted_gated_relu(
    num_samples: int = 80,
    in_features: int = 4,
    out_features: int = 2,
    *,
    num_gates: int = 3,
    rank: int = 1,
    num_layers: int = 2,
    output_bias: bool = False,
    path_decay: float = 0.1,
    reduction: str = "mean",
    generator: torch.Generator | None = None,
) -> PlantedProblem:
    r"""Parallel network whose units are linear where fixed random gates are open; every gate is used by the optimum.

    The dual norm is :math:`\max_k \|X' D_k \Lambda\|_2`, :math:`D_k` being the product of the gates of branch k, one gate a
    hidden layer. The optimum is over networks whose branches use these gates.

    Args:
        num_samples: Must exceed ``num_gates * in_features``, by a factor that grows with depth: two layers of gates leave a
            quarter of the samples open.
        in_features: Columns of the Gaussian inputs.
        out_features: Columns of the targets.
        num_gates: Number of different gates (of sequences of gates, for more than two layers).
        rank: Optimal branches a gate; at most ``min(in_features, out_features)``.
        num_layers: Number of linear layers, two or more.
        output_bias: Whether the network has an unpenalised output bias.
        path_decay: Strength :math:`\beta` of the path penalty.
        reduction: Of the squared error, ``"mean"`` or ``"sum"``.
        generator: Source of randomness; torch's own if ``None``.

    Returns:
        The problem, float64 on the CPU. It has ``num_gates * rank`` branches, with hidden widths of one; ``spec`` holds the
        gates of each.

    Raises:
        InvalidInputError: If an argument is outside the range given above, or there are too few samples for the gates.

    Example:
        >>> problem = planted_gated_relu(60, 3, 2, num_gates=2, generator=torch.Generator().manual_seed(0))
        >>> masks = problem.spec.gate_masks(problem.inputs)
        >>> torch.linalg.matrix_norm(problem.inputs.T @ (masks[:, :, None] * problem.dual_point), ord=2)
        tensor([0.1000, 0.1000], dtype=torch.float64)
    """
    check_count("num_samples", num_samples, 1)
    check_count("in_features", in_features, 1)
    check_count("out_features", out_features, 1)
    check_count("num_gates", num_gates, 1)
    check_count("num_layers", num_layers, 2)
    spec = BranchSpec(
        widths=(in_features, *[1] * (num_layers - 1), out_features),
        activations=tuple(
            BranchActivation(negative_slope=1.0, gate_vectors=(random_normal(num_gates, in_features, generator=generator),))
            for _ in range(num_layers - 1)
        ),
        output_bias=output_bias,
    )
    inputs = random_normal(num_samples, in_features, generator=generator)
    return plant_masked_linear(inputs, spec, rank=rank, path_decay=path_decay, reduction=reduction, generator=generator)
