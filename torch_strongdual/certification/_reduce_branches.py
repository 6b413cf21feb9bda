"""The same network from fewer branches."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from torch_strongdual._checks import check_finite, check_in
from torch_strongdual.certification._caratheodory import reduced_magnitudes
from torch_strongdual.certification._own_defaults import with_own_defaults
from torch_strongdual.certification.training_problem import CERTIFIED_PENALTIES
from torch_strongdual.errors import InvalidInputError, UnsupportedModelError
from torch_strongdual.functional import path_penalty
from torch_strongdual.nn import ParallelNet, ParallelWeights

__all__ = ["reduce_branches"]


@with_own_defaults
def reduce_branches(
    net: ParallelNet,
    inputs: Tensor,  # shape: (num_samples, in_features)
    *,
    penalty: str = "product",
) -> ParallelNet:
    r"""Return a network of fewer branches with the same outputs on ``inputs`` and no larger penalty (Caratheodory).

    Each branch is kept up to a non-negative factor on its last layer, and those kept have linearly independent outputs
    on ``inputs``: there are at most ``num_samples * out_features`` of them (one if all outputs are zero), which is within the
    bound ``num_samples * out_features + 1`` of the theory, and usually far fewer. Elsewhere than on ``inputs`` the
    outputs may change. A gate whose branches all go, goes too: certify with the gates of ``net`` before.

    Args:
        net: The network; not changed.
        inputs: As the network takes them, at least one sample.
        penalty: Form of the penalty that must not grow: ``"product"``, ``"l2_path"``, or ``"power"``, which is at least the
            product form and equal to it in the network returned.

    Returns:
        A new network, of the dtype and on the device of ``net``, its branches balanced. Factors are computed in float64: the
        outputs are the same up to rounding in the dtype of the network. The output bias is not touched.

    Raises:
        InvalidInputError: If there are no samples, or inputs, weights or branch outputs are not finite.
        UnsupportedModelError: If ``net`` is not a ParallelNet, or has hidden biases.
        ShapeError: If ``inputs`` do not fit.

    Example:
        >>> from torch import nn
        >>> net = ParallelNet(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1), num_branches=50, dtype=torch.float64)
        >>> inputs = torch.randn(6, 2, dtype=torch.float64)
        >>> small = reduce_branches(net, inputs)
        >>> small.num_branches <= 6, torch.allclose(small(inputs), net(inputs))
        (True, True)

    References:
        Wang, Ergen, Pilanci, "Parallel Deep Neural Networks Have Zero Duality Gap", ICLR 2023.
        https://arxiv.org/abs/2110.06482
    """
    check_in("penalty", penalty, CERTIFIED_PENALTIES)
    if not isinstance(net, ParallelNet):
        raise UnsupportedModelError(f"`net` is a {type(net).__name__}; expected a ParallelNet.")
    if not isinstance(inputs, Tensor) or inputs.ndim < 2 or inputs.shape[0] == 0:
        shape = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise InvalidInputError(f"`inputs` is {shape}; expected a tensor of at least one sample, (num_samples, in_features).")
    check_finite("inputs", inputs)
    weights = ParallelWeights.from_module(net)
    if weights.spec.hidden_bias_layers:
        raise UnsupportedModelError(
            f"Hidden layers {weights.spec.hidden_bias_layers} of {weights.spec} have a bias, so that branches cannot be "
            "balanced layer by layer; build them with bias=False."
        )
    kind = "product" if penalty == "power" else penalty
    outputs = _branch_outputs(weights, inputs.detach().cpu())
    check_finite("branch outputs", outputs)
    factors = reduced_magnitudes(outputs, path_penalty(weights.weights, kind))
    reduced = copy.deepcopy(net)
    last = reduced.branch_weights()[-1]
    with torch.no_grad():
        last.copy_(weights.weights[-1] * factors[:, None, None])
    reduced.prune_()
    reduced.balance_()
    return reduced


def _branch_outputs(weights: ParallelWeights, inputs: Tensor) -> Tensor:  # shape: (num_samples * out_features, num_branches)
    spec = weights.spec
    masks = spec.gate_masks(inputs)
    features = spec.features(inputs, weights.weights[:-1], masks)
    return torch.einsum("knh,koh->nok", features, weights.weights[-1]).flatten(0, 1)
