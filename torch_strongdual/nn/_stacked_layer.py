"""What linear layers and convolutions of all branches at one depth share: their parameters, and what is done to them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from torch_strongdual.errors import UnsupportedModelError
from torch_strongdual.functional._branch_weights import per_branch

__all__ = ["WEIGHT_HOOKS", "StackedLayer", "copied_parameter", "stacked_parameters"]

#: Hooks that compute a weight before a call, from parameters of other names.
WEIGHT_HOOKS = (BasePruningMethod, SpectralNorm, WeightNorm)


class StackedLayer(nn.Module):
    """A layer a branch. The network computes with its parameters, and calls it only for its hooks or :mod:`torch.fx`.

    Args:
        weight: Shape ``(num_branches, out_features, in_features)``, or ``(num_branches, out, in, *kernel_size)``.
        bias: Shape ``(num_branches, out)``, or ``(out,)`` where the branches share it, or ``None``.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    is_first: bool = False
    """Whether it is given what the network is given, which the branches share."""
    is_last: bool = False
    """Whether its outputs are summed over branches."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = weight
        self.register_parameter("bias", bias)

    def up_to_date(self) -> Self:
        """The layer itself, after masks and norms have computed its weights, which they do before a call only."""
        for hook in self._forward_pre_hooks.values() if self._forward_pre_hooks else ():
            if isinstance(hook, WEIGHT_HOOKS):
                hook(self, ())
        return self

    def apply(self, fn: Callable[[nn.Module], None]) -> Self:
        """Call ``fn`` with each branch's layer, a plain one of torch, and then with this one.

        What it makes of the parameters of the former is kept. So functions that look for :class:`torch.nn.Linear` find one for
        each branch, with weights of the shape they expect, and others, hooks say, find what the network calls. Weights that
        are computed from other parameters, or sharded, are not handed out.
        """
        parameters = [p for p in (self.weight, self.bias) if p is not None]
        if not all(isinstance(p, nn.Parameter) and not hasattr(p, "full_tensor") for p in parameters):
            return super().apply(fn)
        layers = [self.branch_layer(index, with_shared_bias=True) for index in range(self.weight.shape[0])]
        for layer in layers:
            fn(layer)
        before = {name: values.detach().clone() for name, values in self._parameters.items() if values is not None}
        super().apply(fn)
        for name, values in before.items():
            self._take_over(name, values, [layer._parameters.get(name) for layer in layers])
        return self

    def _take_over(self, name: str, before: Tensor, changed: Sequence[Tensor | None]) -> None:
        """Keep what was made of a parameter in the layers of branches, where something was."""
        own = self._parameters.get(name)
        if own is None:  # a norm of weights has replaced it
            return
        is_shared = name == "bias" and self.has_shared_bias
        with torch.no_grad():
            for index, values in enumerate(changed):
                old, new = (before, own) if is_shared else (before[index], own[index])
                if values is not None and values.shape != old.shape:
                    raise UnsupportedModelError(
                        f"The {name} of branch {index} became of shape {tuple(values.shape)}; expected {tuple(old.shape)}."
                    )
                # Nothing is written for nothing: it would upset a backward pass.
                if values is not None and not old.is_meta and not torch.equal(old, values.to(old)):
                    new.copy_(values)
        flags = {values.requires_grad for values in changed if values is not None}
        if len(flags) > 1:
            raise UnsupportedModelError(
                f"The {name} requires gradients in some branches and not in others; expected the same in all, as they are one "
                "parameter."
            )
        own.requires_grad_(flags.pop() if flags else own.requires_grad)

    @abstractmethod
    def branch_layer(self, index: int, *, with_shared_bias: bool) -> nn.Module:
        """Return branch ``index`` as a layer of its own, a copy."""

    @property
    def has_shared_bias(self) -> bool:
        """Whether there is one bias for all branches."""
        return self.bias is not None and self.bias.ndim == 1

    @property
    def fan_out(self) -> int:
        """Number of outputs (channels) of a branch."""
        return self.weight.shape[1]

    @property
    def fan_in(self) -> int:
        """Number of numbers that each of a branch's outputs is a combination of."""
        return math.prod(self.weight.shape[2:])

    def matrices(self) -> Tensor:  # shape: (num_branches, fan_out, fan_in)
        """The weights, kernels as rows; a view, differentiable."""
        return self.weight if self.weight.ndim == 3 else self.weight.flatten(2)

    def copy_first_branch_(self, weight: Tensor, bias: Tensor | None) -> Self:
        """Give branch 0 the weights given and draw the others as :meth:`torch.nn.Linear.reset_parameters` does."""
        if weight.is_meta and not self.weight.is_meta:  # nothing to copy
            self.reset_parameters()
            return self
        self.reset_parameters(first_branch=1)
        with torch.no_grad():
            self.weight[0].copy_(weight)
            if self.bias is not None and bias is not None:
                (self.bias if self.has_shared_bias else self.bias[0]).copy_(bias)
        return self

    def reset_parameters(self, first_branch: int = 0) -> None:
        """Draw the branches from ``first_branch`` on anew, each as :class:`torch.nn.Linear` does."""
        bound = 1 / math.sqrt(self.fan_in)
        with torch.no_grad():
            if first_branch < self.weight.shape[0]:  # a draw of no numbers would advance no generator, but be explicit
                self.weight[first_branch:].uniform_(-bound, bound)
            if self.bias is not None and not self.has_shared_bias and first_branch < self.bias.shape[0]:
                self.bias[first_branch:].uniform_(-bound, bound)
            if self.bias is not None and self.has_shared_bias and first_branch == 0:
                self.bias.uniform_(-bound, bound)

    def branch_bias(self, index: int, *, with_shared_bias: bool) -> nn.Parameter | None:
        """Copy of the bias of branch ``index``, of the shared one only if wanted."""
        if self.bias is None or (self.has_shared_bias and not with_shared_bias):
            return None
        values = self.bias if self.has_shared_bias else self.bias[index]
        return copied_parameter(values, requires_grad=self.bias.requires_grad)

    def append_(self, matrices: Tensor, bias: Tensor | None) -> None:
        """Add branches at the end, given as :meth:`matrices` gives them. A bias that is not given is zero."""
        added_weight = matrices.detach().to(self.weight).reshape(-1, *self.weight.shape[1:])
        _replace_data_(self.weight, torch.cat([self.weight.detach(), added_weight]))
        if self.bias is not None and not self.has_shared_bias:
            added = matrices.new_zeros(matrices.shape[:2]) if bias is None else bias.detach()
            _replace_data_(self.bias, torch.cat([self.bias.detach(), added.to(self.bias)]))

    def keep_(self, indices: Tensor) -> None:
        """Keep only the branches ``indices``."""
        _replace_data_(self.weight, self.weight.detach()[indices])
        if self.bias is not None and not self.has_shared_bias:
            _replace_data_(self.bias, self.bias.detach()[indices])

    def scale_(self, weight_scales: Tensor, bias_scales: Tensor) -> None:
        """Multiply each branch's weight and bias by positive numbers of shape ``(num_branches,)``, float64."""
        with torch.no_grad():
            self.weight.copy_(self.weight.to(torch.float64) * per_branch(weight_scales, self.weight))
            if self.bias is not None and not self.has_shared_bias:
                self.bias.copy_(self.bias.to(torch.float64) * bias_scales[:, None])

    def _bias_text(self) -> str:
        return "shared" if self.has_shared_bias else str(self.bias is not None)


def copied_parameter(values: Tensor, *, requires_grad: bool) -> nn.Parameter:
    """A parameter of its own with these values."""
    return nn.Parameter(values.detach().clone(), requires_grad=requires_grad)


def stacked_parameters(
    weight: Tensor,
    bias: Tensor | None,
    num_branches: int,
    *,
    shared_bias: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Empty parameters for ``num_branches`` copies of a layer that has ``weight`` and ``bias``."""
    example = torch.empty(0, dtype=dtype or weight.dtype, device=device or weight.device)
    stacked = nn.Parameter(example.new_empty(num_branches, *weight.shape), requires_grad=weight.requires_grad)
    if bias is None:
        return stacked, None
    shape = bias.shape if shared_bias else (num_branches, *bias.shape)
    return stacked, nn.Parameter(example.new_empty(shape), requires_grad=bias.requires_grad)


def _replace_data_(parameter: nn.Parameter, values: Tensor) -> None:
    # The Parameter stays the same object, so optimizers keep training it; a gradient of the old shape would not fit.
    parameter.data = values
    parameter.grad = None
