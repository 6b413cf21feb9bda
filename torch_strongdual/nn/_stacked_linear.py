"""The linear layers of all branches at one depth, in one parameter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torch_strongdual.functional.stacked_outputs import first_layer, hidden_layer, summed_layer
from torch_strongdual.nn._stacked_layer import StackedLayer, copied_parameter, stacked_parameters

__all__ = ["StackedLinear"]


for _name in ("first_layer", "hidden_layer", "summed_layer"):
    torch.fx.wrap(_name)


class StackedLinear(StackedLayer):
    """A linear layer a branch; ``weight`` has shape ``(num_branches, out_features, in_features)``."""

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
        bias: nn.Parameter | None = linear.bias  # torch declares it as always there
        stacked = cls(
            *stacked_parameters(linear.weight, bias, num_branches, shared_bias=shared_bias, device=device, dtype=dtype)
        )
        return stacked.copy_first_branch_(linear.weight, bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """The first of a network takes ``(num_samples, in)``, others, as activations, ``(num_branches, in, num_samples)``."""
        layer = first_layer if self.is_first else summed_layer if self.is_last else hidden_layer
        return layer(hidden, self.weight, self.bias)

    def branch_layer(self, index: int, *, with_shared_bias: bool) -> nn.Linear:
        """Return branch ``index`` as a layer of its own, a copy."""
        linear = nn.Linear(self.fan_in, self.fan_out, bias=False, device="meta")  # draws nothing
        linear.weight = copied_parameter(self.weight[index], requires_grad=self.weight.requires_grad)
        bias = self.branch_bias(index, with_shared_bias=with_shared_bias)
        if bias is not None:
            linear.bias = bias
        return linear

    def extra_repr(self) -> str:
        """What :class:`torch.nn.Linear` shows, and the number of branches."""
        return (
            f"num_branches={self.weight.shape[0]}, in_features={self.fan_in}, out_features={self.fan_out}, "
            f"bias={self._bias_text()}"
        )
