"""The branches of a network one by one: what a parallel network is compared with."""

from __future__ import annotations

from torch import Tensor, nn

from torch_strongdual.nn import ParallelNet

__all__ = ["BranchLoop"]


class BranchLoop(nn.Module):
    """Copies of the branches as nn.Sequential, their outputs added; without the output bias."""

    def __init__(self, net: ParallelNet) -> None:
        super().__init__()
        self.branches = nn.ModuleList([net.branch(index) for index in range(net.num_branches)])

    def forward(self, inputs: Tensor) -> Tensor:
        """Sum of the branches' outputs."""
        total = self.branches[0](inputs)
        for branch in self.branches[1:]:
            total = total + branch(inputs)
        return total
