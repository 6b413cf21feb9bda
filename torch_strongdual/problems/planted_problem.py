"""A training problem together with its optimum and the dual point that proves it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from torch_strongdual.nn.branch_spec import BranchSpec

__all__ = ["PlantedProblem"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlantedProblem:
    r"""A problem :math:`\min \ell(\sum_k \phi_k(X) W_{L,k} + b) + \beta \sum_k \prod_l \|W_{l,k}\|_F` whose optimum is known.

    All tensors are float64 on the CPU. The optimum is over networks with any number of branches of any hidden widths.

    Args:
        inputs: :math:`X`, shape ``(num_samples, in_features)``.
        targets: :math:`Y`, shape ``(num_samples, out_features)``.
        loss: Squared error, averaged or summed over all elements.
        path_decay: :math:`\beta`.
        spec: Architecture of a branch; gates, where it has any, belong to the branches of ``optimal_weights``.
        optimal_value: The least objective there is, in the units of the training objective, correct to rounding.
        optimal_weights: A network that attains it, as a branch weight list (see
            :class:`~torch_strongdual.nn.branch_spec.BranchSpec`); all layers of a branch have the same norm.
        optimal_bias: Its output bias, shape ``(out_features,)``; ``None`` if ``spec`` has none.
        dual_point: An optimal dual point, shape ``(num_samples, out_features)``; its dual norm is ``path_decay``.

    Example:
        >>> from torch_strongdual.problems import planted_linear
        >>> problem = planted_linear(num_samples=20, in_features=4, out_features=2, rank=1)
        >>> problem.inputs.shape, [tuple(weight.shape) for weight in problem.optimal_weights]
        (torch.Size([20, 4]), [(1, 1, 4), (1, 2, 1)])
    """

    inputs: Tensor
    targets: Tensor
    loss: nn.MSELoss
    path_decay: float
    spec: BranchSpec
    optimal_value: float
    optimal_weights: tuple[Tensor, ...]
    optimal_bias: Tensor | None
    dual_point: Tensor
