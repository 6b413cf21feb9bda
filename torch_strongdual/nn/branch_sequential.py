"""A sequence of layers that hands the branch input to the gates among them."""

from __future__ import annotations

from torch import Tensor, nn

from torch_strongdual.nn.gated_relu import GatedReLU

__all__ = ["BranchSequential"]


class BranchSequential(nn.Sequential):
    """:class:`torch.nn.Sequential` in which :class:`~torch_strongdual.nn.gated_relu.GatedReLU` works.

    It is what :meth:`ParallelNet.branch <torch_strongdual.nn.parallel_net.ParallelNet.branch>` returns for a gated network. The
    branch input is what the first :class:`torch.nn.Linear` is given.

    Args:
        *args: Layers, or one OrderedDict, as for :class:`torch.nn.Sequential`.

    Example:
        >>> import torch
        >>> gate = GatedReLU(1, gate_vector=torch.tensor([1.0]))
        >>> net = BranchSequential(nn.Linear(1, 2), gate, nn.Linear(2, 1, bias=False))
        >>> net(torch.tensor([[-3.0]])).abs()
        tensor([[0.]], grad_fn=<AbsBackward0>)
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name nn.Sequential gives it
        """Apply the layers one after the other."""
        hidden, branch_input = input, None
        for layer in self:
            if isinstance(layer, GatedReLU):
                hidden = layer(hidden, branch_input)
                continue
            if branch_input is None and isinstance(layer, nn.Linear):
                branch_input = hidden
            hidden = layer(hidden)
        return hidden
