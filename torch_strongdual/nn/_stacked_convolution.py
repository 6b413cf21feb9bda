"""The convolutions of all branches at one depth, in one parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torch_strongdual.functional.convolved_outputs import ConvolutionGeometry, convolved_layer
from torch_strongdual.nn._stacked_layer import StackedLayer, copied_parameter, stacked_parameters

__all__ = ["CONVOLUTIONS", "StackedConvolution"]

#: Exact types: a subclass may compute something else.
CONVOLUTIONS: tuple[type[nn.Conv1d | nn.Conv2d], ...] = (nn.Conv1d, nn.Conv2d)


class StackedConvolution(StackedLayer):
    """A convolution a branch; ``weight`` has shape ``(num_branches, out_channels, in_channels, *kernel_size)``.

    Args:
        weight: See above.
        bias: Shape ``(num_branches, out_channels)``, or ``None``.
        geometry: Stride, padding and dilation.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, geometry: ConvolutionGeometry) -> None:
        super().__init__(weight, bias)
        self.geometry = geometry

    @classmethod
    def from_convolution(
        cls,
        layer: nn.Conv1d | nn.Conv2d,
        num_branches: int,
        *,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> StackedConvolution:
        """Give branch 0 the kernels given and draw the others as :meth:`torch.nn.Conv2d.reset_parameters` does."""
        stacked = cls(
            *stacked_parameters(layer.weight, layer.bias, num_branches, shared_bias=False, device=device, dtype=dtype),
            geometry=ConvolutionGeometry(stride=layer.stride, padding=layer.padding, dilation=layer.dilation),
        )
        return stacked.copy_first_branch_(layer.weight, layer.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Convolve ``(num_samples, channels, *spatial)``, the channels of one branch after the other unless it is the first."""
        return convolved_layer(hidden, self.weight, self.bias, self.geometry, 1 if self.is_first else self.weight.shape[0])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Hand ``fn`` the kernels as those of one convolution: only such tensors can be made ``torch.channels_last``."""

        def on_kernels(tensor: Tensor) -> Tensor:
            if tensor.ndim != self.weight.ndim:
                return fn(tensor)
            return fn(tensor.flatten(0, 1)).reshape(tensor.shape)

        return super()._apply(on_kernels, recurse)  # type: ignore[no-untyped-call]

    def branch_layer(self, index: int, *, with_shared_bias: bool) -> nn.Conv1d | nn.Conv2d:
        """Return branch ``index`` as a layer of its own, a copy."""
        _, fan_out, fan_in, *kernel_size = self.weight.shape
        kind = CONVOLUTIONS[len(kernel_size) - 1]
        geometry = self.geometry
        layer = kind(
            fan_in,
            fan_out,
            tuple(kernel_size),  # type: ignore[arg-type]
            stride=geometry.stride,  # type: ignore[arg-type]
            padding=geometry.padding,  # type: ignore[arg-type]
            dilation=geometry.dilation,  # type: ignore[arg-type]
            bias=False,
            device="meta",  # draws nothing
        )
        layer.weight = copied_parameter(self.weight[index], requires_grad=self.weight.requires_grad)
        layer.bias = self.branch_bias(index, with_shared_bias=with_shared_bias)
        return layer

    def extra_repr(self) -> str:
        """What :class:`torch.nn.Conv2d` shows, and the number of branches."""
        num_branches, fan_out, fan_in, *kernel_size = self.weight.shape
        return (
            f"num_branches={num_branches}, in_channels={fan_in}, out_channels={fan_out}, kernel_size={tuple(kernel_size)}, "
            f"stride={self.geometry.stride}, padding={self.geometry.padding}, dilation={self.geometry.dilation}, "
            f"bias={self._bias_text()}"
        )
