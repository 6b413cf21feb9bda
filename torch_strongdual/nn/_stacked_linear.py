"""The linear layers of all branches at one depth, in one parameter."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["StackedLinear"]


class StackedLinear(nn.Module):
    """Parameters of a linear layer a branch: a container, the forward pass belongs to the network.

    Args:
        weight: Shape ``(num_branches, out_features, in_features)``.
        bias: Shape ``(num_branches, out_features)``, or ``(out_features,)`` where the branches share it, or ``None``.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = weight
        self.register_parameter("bias", bias)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        num_branches: int,
        *,
        shared_bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> StackedLinear:
        """Give branch 0 the weights given and draw the others as :meth:`torch.nn.Linear.reset_parameters` does."""
        example = torch.empty(0, dtype=dtype or linear.weight.dtype, device=device or linear.weight.device)
        weight = nn.Parameter(example.new_empty(num_branches, *linear.weight.shape), requires_grad=linear.weight.requires_grad)
        bias = None
        if linear.bias is not None:
            shape = linear.bias.shape if shared_bias else (num_branches, *linear.bias.shape)
            bias = nn.Parameter(example.new_empty(shape), requires_grad=linear.bias.requires_grad)
        stacked = cls(weight, bias)
        if linear.weight.is_meta and not weight.is_meta:  # nothing to copy
            stacked.reset_parameters()
            return stacked
        stacked.reset_parameters(first_branch=1)
        with torch.no_grad():
            weight[0].copy_(linear.weight)
            if bias is not None:
                (bias if shared_bias else bias[0]).copy_(linear.bias)
        return stacked

    @property
    def has_shared_bias(self) -> bool:
        """Whether there is one bias for all branches."""
        return self.bias is not None and self.bias.ndim == 1

    def reset_parameters(self, first_branch: int = 0) -> None:
        """Draw the branches from ``first_branch`` on anew, each as :class:`torch.nn.Linear` does."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        with torch.no_grad():
            if first_branch < self.weight.shape[0]:  # a draw of no numbers would advance no generator, but be explicit
                self.weight[first_branch:].uniform_(-bound, bound)
            if self.bias is not None and not self.has_shared_bias and first_branch < self.bias.shape[0]:
                self.bias[first_branch:].uniform_(-bound, bound)
            if self.bias is not None and self.has_shared_bias and first_branch == 0:
                self.bias.uniform_(-bound, bound)

    def branch_linear(self, index: int, *, with_shared_bias: bool) -> nn.Linear:
        """Return branch ``index`` as a layer of its own, a copy."""
        bias = self.bias
        if bias is not None:
            bias_values = (bias if with_shared_bias else None) if self.has_shared_bias else bias[index]
        else:
            bias_values = None
        _, fan_out, fan_in = self.weight.shape
        linear = nn.Linear(fan_in, fan_out, bias=False, device="meta")  # draws nothing
        linear.weight = _copied_parameter(self.weight[index], requires_grad=self.weight.requires_grad)
        if bias is not None and bias_values is not None:
            linear.bias = _copied_parameter(bias_values, requires_grad=bias.requires_grad)
        return linear

    def append_(self, weight: Tensor, bias: Tensor | None) -> None:
        """Add branches at the end. A bias that is not given is zero."""
        _replace_data_(self.weight, torch.cat([self.weight.detach(), weight.detach().to(self.weight)]))
        if self.bias is not None and not self.has_shared_bias:
            added = weight.new_zeros(weight.shape[:2]) if bias is None else bias.detach()
            _replace_data_(self.bias, torch.cat([self.bias.detach(), added.to(self.bias)]))

    def keep_(self, indices: Tensor) -> None:
        """Keep only the branches ``indices``."""
        _replace_data_(self.weight, self.weight.detach()[indices])
        if self.bias is not None and not self.has_shared_bias:
            _replace_data_(self.bias, self.bias.detach()[indices])

    def scale_(self, weight_scales: Tensor, bias_scales: Tensor) -> None:
        """Multiply each branch's weight and bias by positive numbers of shape ``(num_branches,)``, float64."""
        with torch.no_grad():
            self.weight.copy_(self.weight.to(torch.float64) * weight_scales[:, None, None])
            if self.bias is not None and not self.has_shared_bias:
                self.bias.copy_(self.bias.to(torch.float64) * bias_scales[:, None])

    def extra_repr(self) -> str:
        """What :class:`torch.nn.Linear` shows, and the number of branches."""
        num_branches, fan_out, fan_in = self.weight.shape
        bias = "shared" if self.has_shared_bias else self.bias is not None
        return f"num_branches={num_branches}, in_features={fan_in}, out_features={fan_out}, bias={bias}"


def _copied_parameter(values: Tensor, *, requires_grad: bool) -> nn.Parameter:
    return nn.Parameter(values.detach().clone(), requires_grad=requires_grad)


def _replace_data_(parameter: nn.Parameter, values: Tensor) -> None:
    # The Parameter stays the same object, so optimizers keep training it; a gradient of the old shape would not fit.
    parameter.data = values
    parameter.grad = None
