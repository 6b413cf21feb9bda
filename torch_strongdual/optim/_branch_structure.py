"""Which parameters of a group form the layers of stacked branches."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_strongdual.errors import InvalidInputError, ShapeError

__all__ = ["ADVICE", "BranchStructure", "accumulation_dtype", "branch_norms"]

ADVICE = "Pass `net.path_param_groups(path_decay=...)` of a ParallelNet, which describes its branches."


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchStructure:
    """Positions of the layers' tensors in a parameter group.

    Args:
        layers: For each layer the position of its weight, followed by that of its bias if it is the first layer and has one.
    """

    layers: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, params: Sequence[Tensor], layer_index: Sequence[int]) -> BranchStructure:
        """Check that ``params`` are the layers of stacked branches and sort them.

        Raises:
            InvalidInputError: If ``layer_index`` does not number the layers of ``params``, or dtypes or devices differ.
            ShapeError: If the tensors do not fit together as layers of stacked branches.
        """
        if len(layer_index) != len(params):
            raise InvalidInputError(
                f"`layer_index` has {len(layer_index)} entries for {len(params)} parameters; expected one each, of all layers "
                f"(wrappers that split groups, as ZeroRedundancyOptimizer does, cannot step branches). {ADVICE}"
            )
        num_layers = max(layer_index, default=-1) + 1
        if num_layers < 2 or set(layer_index) != set(range(num_layers)):
            raise InvalidInputError(
                f"`layer_index` is {tuple(layer_index)}; expected the numbers 0 to L - 1 of two or more layers, none left out. "
                f"{ADVICE}"
            )
        members = [[i for i, layer in enumerate(layer_index) if layer == number] for number in range(num_layers)]
        for layer in members:
            layer.sort(key=lambda position: -params[position].ndim)
        structure = cls(layers=tuple(map(tuple, members)))
        structure._check(params)
        return structure

    @property
    def has_bias(self) -> bool:
        """Whether the first layer has a bias."""
        return len(self.layers[0]) == 2

    def weights(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Return the branch weight list: the first-layer bias is appended to its weight as the last column."""
        weights = [params[layer[0]] for layer in self.layers]
        if self.has_bias:
            weights[0] = torch.cat([weights[0], params[self.layers[0][1]].unsqueeze(2)], dim=2)
        return weights

    def unstack(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Undo :meth:`weights`: one tensor a parameter, in the order of the group."""
        parts: dict[int, Tensor] = {layer[0]: weight for layer, weight in zip(self.layers, weights, strict=True)}
        if self.has_bias:
            weight, bias = self.layers[0]
            parts[weight], parts[bias] = weights[0][:, :, :-1], weights[0][:, :, -1]
        return [parts[position] for position in sorted(parts)]

    def norms(self, tensors: Sequence[Tensor], layers: Sequence[int] | None = None) -> Tensor:  # shape: (layers, num_branches)
        """Frobenius norm of every layer in every branch, in :func:`accumulation_dtype`.

        Args:
            tensors: One tensor a parameter, in the order of the group.
            layers: Numbers of the layers wanted, one or more; ``None`` for all.
        """
        wanted = self.layers if layers is None else [self.layers[layer] for layer in layers]
        return torch.stack([functools.reduce(torch.hypot, [branch_norms(tensors[i]) for i in layer]) for layer in wanted])

    def _check(self, params: Sequence[Tensor]) -> None:
        for number, layer in enumerate(self.layers):
            weight = params[layer[0]]
            shapes = ", ".join(str(tuple(params[position].shape)) for position in layer)
            if weight.ndim < 3 or len(layer) > 1 + (number == 0):
                expected = " and possibly a bias of shape (num_branches, out)" if number == 0 else ""
                raise ShapeError(
                    f"layer {number} of `layer_index` has tensors of shapes {shapes}; expected one weight of shape "
                    f"(num_branches, out, in) or (num_branches, out, in, *kernel_size){expected}. {ADVICE}"
                )
            if len(layer) == 2 and params[layer[1]].shape != weight.shape[:2]:
                raise ShapeError(
                    f"the first layer has tensors of shapes {shapes}; expected a weight (num_branches, out, in) and a bias "
                    f"(num_branches, out). {ADVICE}"
                )
            self._check_chain(params, number)

    def _check_chain(self, params: Sequence[Tensor], number: int) -> None:
        first, weight = params[self.layers[0][0]], params[self.layers[number][0]]
        if weight.shape[0] != first.shape[0]:
            raise ShapeError(
                f"layer {number} has {weight.shape[0]} branches (shape {tuple(weight.shape)}) but layer 0 has "
                f"{first.shape[0]}; expected the same number of branches. {ADVICE}"
            )
        before = params[self.layers[number - 1][0]] if number else weight
        outputs, is_flattened = before.shape[1], before.ndim > 3 and weight.ndim == 3
        # Behind a convolution a linear layer takes every channel once for each location.
        if number and (weight.shape[2] % outputs if is_flattened else weight.shape[2] != outputs):
            raise ShapeError(
                f"layer {number} takes {weight.shape[2]} inputs (shape {tuple(weight.shape)}) but layer {number - 1} has "
                f"{outputs} outputs; expected widths that chain. {ADVICE}"
            )
        if any(params[i].dtype != first.dtype or params[i].device != first.device for i in self.layers[number]):
            raise InvalidInputError(
                f"layer {number} has dtype {weight.dtype} on {weight.device} but layer 0 has {first.dtype} on {first.device}; "
                "expected one dtype and device a parameter group. Convert the network as a whole."
            )


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """Dtype for norms and second moments: that of ``tensor``, but at least float32."""
    return tensor.dtype if tensor.dtype.itemsize >= 4 else torch.float32


def branch_norms(tensor: Tensor) -> Tensor:  # shape: (num_branches,)
    """Frobenius norm of every branch's part of ``tensor``, in :func:`accumulation_dtype`."""
    dims = tuple(range(1, tensor.ndim))
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=dims, dtype=accumulation_dtype(tensor))
    return norms
