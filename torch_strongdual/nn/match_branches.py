"""As many branches as a stored network has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torch_strongdual.nn.parallel_net import ParallelNet

__all__ = ["match_branches_"]


def match_branches_(module: nn.Module, state_dict: Mapping[str, Any], prefix: str = "") -> None:
    """Give each ParallelNet in ``module`` as many branches as ``state_dict`` has, so that it can be loaded.

    Pruning and growing change the number of branches, and ``load_state_dict`` wants equal shapes. Values are not loaded.
    Parameters stay the objects they are, so optimizers that hold them go on. Networks that ``state_dict`` does not have stay
    as they are.

    A LightningModule whose network is pruned or grown loads its checkpoints, also by ``load_from_checkpoint``, with::

        def on_load_checkpoint(self, checkpoint):
            match_branches_(self, checkpoint["state_dict"])

    Args:
        module: A ParallelNet, or a module that has some.
        state_dict: What is to be loaded into ``module``.
        prefix: In front of the names in ``state_dict``.

    Example:
        >>> net = ParallelNet(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1), num_branches=8)
        >>> small = ParallelNet(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1), num_branches=2)
        >>> match_branches_(small, net.state_dict())
        >>> small.load_state_dict(net.state_dict())
        <All keys matched successfully>
    """
    for name, child in module.named_modules(prefix=prefix.removesuffix(".")):
        if isinstance(child, ParallelNet):
            _match(child, state_dict, f"{name}." if name else "")


def _match(net: ParallelNet, state_dict: Mapping[str, Any], prefix: str) -> None:
    name = next(name for name, parameter in net.named_parameters() if parameter is net.branch_weights()[-1])
    stored = state_dict.get(prefix + name)
    if not isinstance(stored, Tensor):
        return
    missing = stored.shape[0] - net.num_branches
    if missing > 0:
        weights = [weight.new_zeros(missing, *weight.shape[1:]) for weight in net.branch_weights()]
        net.add_branches_(weights, gate_vectors=[vectors[:1].expand(missing, -1) for vectors in net.gate_vectors()])
    elif missing < 0:  # values are about to be loaded: only zero or not zero counts
        with torch.no_grad():
            for parameter in net.path_param_groups(1.0)[0]["params"]:
                parameter.fill_(1.0)[stored.shape[0] :] = 0.0
        net.prune_()
