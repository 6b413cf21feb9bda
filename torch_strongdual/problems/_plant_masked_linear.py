r"""Plants networks that are linear on fixed subsets of the samples: the common part of the linear and the gated problem.

The dual norm is :math:`\max_k \|X' D_k \Lambda\|_2` over the masks :math:`D_k`. Matrices :math:`M_k` are drawn whose
largest singular value, :math:`\beta`, has the multiplicity wanted, and :math:`X' D_k \Lambda = M_k` is solved for
:math:`\Lambda`, with a random part in the directions that these equations leave open. The top singular pairs
:math:`(u, v)` of the :math:`M_k` are the optimal branches.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from torch_strongdual._checks import check_positive_finite
from torch_strongdual.errors import InvalidInputError
from torch_strongdual.nn.branch_spec import BranchSpec
from torch_strongdual.problems._plant import check_count, plant, random_normal
from torch_strongdual.problems.planted_problem import PlantedProblem

__all__ = ["plant_masked_linear"]

_INACTIVE_SINGULAR_VALUE = 0.5  # relative to path_decay: clearly inactive, clearly not zero


def plant_masked_linear(
    inputs: Tensor,
    spec: BranchSpec,
    *,
    rank: int,
    path_decay: float,
    reduction: str,
    generator: torch.Generator | None,
) -> PlantedProblem:
    """Plant ``rank`` branches for each of the gates of ``spec`` (for all samples, if it has none)."""
    check_positive_finite("path_decay", path_decay)
    check_count("rank", rank, 1, min(spec.widths[0], spec.out_features))
    masks = spec.gate_masks(inputs)
    rows = inputs[None] if masks is None else inputs[None] * masks[:, :, None]  # shape: (num_gates, n, d)
    images, hidden = _dual_images(len(rows), spec, rank, path_decay, generator)
    dual_point = _solve_dual_point(rows, images, spec, generator)
    attained = torch.linalg.matrix_norm(rows.transpose(1, 2) @ dual_point, ord=2).max()
    gates_of_branches = tuple(
        replace(a, gate_vectors=tuple(g.repeat_interleave(rank, dim=0) for g in a.gate_vectors)) for a in spec.activations
    )
    return plant(
        inputs,
        replace(spec, activations=gates_of_branches),
        hidden,
        dual_point * (path_decay / attained),
        path_decay=path_decay,
        reduction=reduction,
        generator=generator,
    )


def _dual_images(
    num_gates: int, spec: BranchSpec, rank: int, path_decay: float, generator: torch.Generator | None
) -> tuple[Tensor, list[Tensor]]:
    """Draw the ``M_k``, shape ``(num_gates, d, c)``, and the unit hidden weights of their top singular pairs."""
    width, outputs = spec.widths[0], spec.out_features
    left, _, right = torch.linalg.svd(random_normal(num_gates, width, outputs, generator=generator), full_matrices=False)
    values = torch.full((min(width, outputs),), _INACTIVE_SINGULAR_VALUE * path_decay, dtype=torch.float64)
    values[:rank] = path_decay
    first = left[:, :, :rank].transpose(1, 2).reshape(num_gates * rank, 1, width)
    ones = [torch.ones(len(first), 1, 1, dtype=torch.float64) for _ in range(spec.num_layers - 2)]
    return (left * values) @ right, [first, *ones]


def _solve_dual_point(rows: Tensor, images: Tensor, spec: BranchSpec, generator: torch.Generator | None) -> Tensor:
    """Solve ``rows[k]' dual_point = images[k]`` for all k, and ``1' dual_point = 0`` if there is an output bias."""
    num_samples = rows.shape[1]
    equations = rows.permute(1, 0, 2).reshape(num_samples, -1)  # shape: (num_samples, num_gates * in_features)
    values = images.reshape(-1, spec.out_features)
    if spec.output_bias:
        equations = torch.cat([equations, equations.new_ones(num_samples, 1)], dim=1)
        values = torch.cat([values, values.new_zeros(1, spec.out_features)])
    basis, triangle = torch.linalg.qr(equations)
    pivots = triangle.diagonal().abs()
    if num_samples < equations.shape[1] or bool(pivots.min() <= 1e-8 * pivots.max()):
        raise InvalidInputError(
            f"`num_samples` is {num_samples}, too few to solve {equations.shape[1]} dual equations on the samples that the "
            "gates leave open. Use more samples, or fewer gates, layers or features."
        )
    particular: Tensor = basis @ torch.linalg.solve_triangular(triangle.T, values, upper=False)
    if num_samples == equations.shape[1]:
        return particular
    free = random_normal(num_samples, spec.out_features, generator=generator)
    for _ in range(2):  # twice: orthogonal to rounding
        free = free - basis @ (basis.T @ free)
    dual_point: Tensor = particular + free * (particular.norm() / free.norm())
    return dual_point
