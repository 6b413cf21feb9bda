"""One view of all modules that introspection accepts."""

from __future__ import annotations

import warnings

from torch import nn

from torch_strongdual.errors import StrongDualWarning, UnsupportedModelError
from torch_strongdual.nn._stacked_layer import WEIGHT_HOOKS
from torch_strongdual.nn.parallel_net import ParallelNet

__all__ = ["as_parallel_net"]


def _may_be_changed_by_hooks(module: nn.Module) -> bool:
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(not isinstance(hook, WEIGHT_HOOKS) for hook in hooks)


def as_parallel_net(module: nn.Module) -> ParallelNet:
    """Return ``module`` if it is a ParallelNet, or a copy of an ``nn.Sequential`` as a ParallelNet of one branch.

    Raises:
        UnsupportedModelError: If it is neither, or a subclass that computes something else.

    Warns:
        StrongDualWarning: If there are hooks, which may change what it computes.
    """
    if any(_may_be_changed_by_hooks(part) for part in module.modules()):
        warnings.warn(
            f"The {type(module).__name__} has forward hooks. What is certified is the network of its weights: what a hook "
            "changes in inputs or outputs is not seen. If one does, put that into the data or into a module around it.",
            StrongDualWarning,
            stacklevel=2,
        )
    if isinstance(module, nn.Sequential):
        return ParallelNet.from_sequential(module, num_branches=1)
    if not isinstance(module, ParallelNet):
        raise UnsupportedModelError(
            f"A {type(module).__name__} has no branches that are known here; expected ParallelNet or nn.Sequential. Pass the "
            "part that is trained with the path penalty: the submodule itself, `.module` of DataParallel, "
            "DistributedDataParallel and AveragedModel, `._orig_mod` of a compiled module."
        )
    if type(module).forward is not ParallelNet.forward:
        raise UnsupportedModelError(
            f"{type(module).__name__} overrides the forward pass of ParallelNet, so it may compute something else. Put what it "
            "adds into a module around a ParallelNet, and pass the ParallelNet."
        )
    return module
