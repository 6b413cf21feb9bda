"""The architecture of a branch, read from a module."""

from __future__ import annotations

from torch import nn

from torch_strongdual.nn._as_parallel_net import as_parallel_net
from torch_strongdual.nn.branch_spec import BranchSpec

__all__ = ["branch_spec_of"]


def branch_spec_of(module: nn.Module) -> BranchSpec:
    """Return what certification needs to know of ``module``, weights apart.

    Args:
        module: A :class:`~torch_strongdual.nn.parallel_net.ParallelNet`, or an :class:`torch.nn.Sequential` of the layers it
            supports (one branch).

    Raises:
        UnsupportedModelError: If ``module`` is something else, or has a layer that is not supported; the message names it.
        ShapeError: If the widths of its layers do not fit.

    Example:
        >>> print(branch_spec_of(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))))
        Linear(3, 8) -> ReLU -> Linear(8, 1)
    """
    return as_parallel_net(module).branch_spec
