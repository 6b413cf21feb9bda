r"""Builds a squared-error problem around an optimal dual point.

Let :math:`\Lambda` have dual norm :math:`\beta`, and let branches of unit norm attain it, that is
:math:`\|\Lambda'\phi_k(X)\|_2 = \beta`. Give branch k the output weights :math:`m_k \Lambda'\phi_k / \beta` with any
:math:`m_k > 0`, call the outputs F, and set :math:`Y = F + \Lambda / a`, a being the curvature of the loss
:math:`(a/2)\|F - Y\|^2`. Then the residual is :math:`\Lambda`, which is feasible, and
:math:`\langle\Lambda, F\rangle = \beta \sum_k m_k`, so that both objectives are
:math:`\|\Lambda\|^2/(2a) + \beta \sum_k m_k`: network and dual point are optimal. An output bias needs
:math:`1'\Lambda = 0` too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torch_strongdual._checks import check_in
from torch_strongdual.errors import InvalidInputError
from torch_strongdual.functional.branch_features import branch_features, branch_outputs
from torch_strongdual.nn.branch_spec import BranchSpec
from torch_strongdual.problems.planted_problem import PlantedProblem

__all__ = ["check_count", "plant", "random_normal"]


def check_count(name: str, value: int, least: int, most: int | None = None) -> None:
    """Raise :class:`InvalidInputError` unless ``value`` is a whole number from ``least`` to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        limit = "" if most is None else f" and at most {most}"
        raise InvalidInputError(f"`{name}` is {value!r}; expected a whole number, at least {least}{limit}.")


def random_normal(*shape: int, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def plant(
    inputs: Tensor,
    spec: BranchSpec,
    hidden_weights: Sequence[Tensor],
    dual_point: Tensor,
    *,
    path_decay: float,
    reduction: str,
    generator: torch.Generator | None,
) -> PlantedProblem:
    """Build the problem for which ``dual_point`` is optimal.

    Args:
        inputs: Float64, shape ``(num_samples, in_features)``.
        spec: Architecture of a branch whose last hidden width is one.
        hidden_weights: Branch weight list without the last layer: branches of unit norm that all attain the dual norm.
        dual_point: Float64; its dual norm is exactly ``path_decay``, which the caller answers for.
        path_decay: Strength of the penalty.
        reduction: Of the squared error, ``"mean"`` or ``"sum"``.
        generator: Draws the branches' magnitudes and the output bias.
    """
    check_in("reduction", reduction, ("mean", "sum"))
    curvature = 2.0 / dual_point.numel() if reduction == "mean" else 2.0
    masks = spec.gate_masks(inputs)
    features = branch_features(spec.branch_inputs(inputs), hidden_weights, spec.negative_slopes, masks)[:, :, 0]
    directions = features @ dual_point / path_decay  # shape: (num_branches, out_features), unit rows
    magnitudes = 0.5 + torch.rand(len(features), dtype=torch.float64, generator=generator)
    shares = magnitudes[:, None, None] ** (1.0 / spec.num_layers)
    weights = (*(shares * weight for weight in hidden_weights), shares * directions[:, :, None])
    outputs = branch_outputs(spec.branch_inputs(inputs), weights, spec.negative_slopes, masks)
    bias = random_normal(spec.out_features, generator=generator) if spec.output_bias else None
    residual_energy = float((dual_point**2).sum()) / (2.0 * curvature)
    return PlantedProblem(
        inputs=inputs,
        targets=outputs + dual_point / curvature + (0.0 if bias is None else bias),
        loss=nn.MSELoss(reduction=reduction),
        path_decay=path_decay,
        spec=spec,
        optimal_value=residual_energy + path_decay * float(magnitudes.sum()),
        optimal_weights=weights,
        optimal_bias=bias,
        dual_point=dual_point,
    )
