"""The weights of a network as certification sees them: float64 copies, with outputs whose rounding error is bounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from torch_strongdual.errors import InvalidInputError
from torch_strongdual.functional._row_blocks import row_blocks
from torch_strongdual.functional.path_penalty import product_penalty
from torch_strongdual.functional.stacked_outputs import stacked_outputs
from torch_strongdual.nn._as_parallel_net import as_parallel_net
from torch_strongdual.nn._folded_layers import can_be_folded, folded_layers, gated_sum
from torch_strongdual.nn._leaf_checks import check_local
from torch_strongdual.nn.branch_spec import BranchSpec
from torch_strongdual.nn.patch_map import PatchMap

__all__ = ["ParallelWeights"]

_CHUNK_NUMBERS = 2**22  # hidden units times samples held at a time: 32 MiB a layer
_UNDERFLOW = 2.0**-960  # times the rounding factor this exceeds what flushing a product to zero can lose


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParallelWeights:
    """A network frozen in float64, on the CPU whatever device it trains on.

    Weights of lower precision are converted without rounding, so this is exactly the network trained, evaluated more
    precisely. Non-finite weights are kept as they are: outputs are NaN then, not wrong.

    Args:
        weights: Branch weight list: one tensor a layer, shape ``(num_branches, out, in)``, first-layer bias as last column.
        hidden_biases: One entry for each hidden layer, shape ``(num_branches, out)`` or ``None``.
        output_bias: Shape ``(out_features,)``, or ``None``.
        spec: Architecture, gates included.
    """

    weights: tuple[Tensor, ...]
    hidden_biases: tuple[Tensor | None, ...]
    output_bias: Tensor | None
    spec: BranchSpec

    @classmethod
    def from_module(cls, module: nn.Module) -> ParallelWeights:
        """Copy the weights of ``module``, a ParallelNet or an ``nn.Sequential`` of its layers.

        Raises:
            UnsupportedModelError: See :func:`~torch_strongdual.nn.branch_spec_of.branch_spec_of`.
            InvalidInputError: If the weights are on the meta device, or sharded over processes.

        Example:
            >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
            >>> weights = ParallelWeights.from_module(net)
            >>> [tuple(weight.shape) for weight in weights.weights]
            [(1, 8, 4), (1, 1, 8)]
        """
        net = as_parallel_net(module)
        return cls(
            weights=tuple(_frozen(weight) for weight in net.branch_weights()),
            hidden_biases=tuple(None if bias is None else _frozen(bias) for bias in net.hidden_biases()),
            output_bias=None if net.output_bias is None else _frozen(net.output_bias),
            spec=_on_cpu(net.branch_spec),
        )

    @property
    def num_branches(self) -> int:
        """Number of branches."""
        return self.weights[0].shape[0]

    def outputs(self, inputs: Tensor) -> Tensor:  # shape: (num_samples, out_features)
        """Outputs of the network, evaluated in float64, a bounded number of samples and branches at a time.

        Args:
            inputs: As the module gets them, shape ``(num_samples, ...)``.

        Raises:
            ShapeError: If ``inputs`` are not samples of the width the network takes.
        """
        activations = [partial(_activate, slope) for slope in self.spec.negative_slopes]
        return self._sum_over_chunks(inputs, lambda tensor: tensor, activations)

    def output_error(self, inputs: Tensor) -> Tensor:  # shape: (num_samples, out_features)
        r"""Bound on the difference, elementwise, between :meth:`outputs` and the outputs in exact arithmetic.

        A sum of m products is off by at most :math:`m u / (1 - m u)` times the sum of their absolute values, in whatever order
        it is formed (:math:`u = 2^{-53}`), sample by sample or layers first; activations do not enlarge errors. So the error is
        at most a multiple of the same forward pass with absolute values. The multiple is taken with :math:`2 u`, which also
        covers the rounding of the bound itself; underflow is covered by a tiny addend. Signs of gates are taken as given. Of
        branches that all have a layer of zeros only the output bias is left, which is exact.

        Args:
            inputs: As for :meth:`outputs`.
        """
        if self._is_zero:
            return torch.zeros_like(self.outputs(inputs))
        magnitude = self._sum_over_chunks(inputs, torch.abs, [_lift] * len(self.spec.activations)) + _UNDERFLOW
        widest = max(weight.shape[2] for weight in self.weights[1:] or self.weights)
        roundings = sum(weight.shape[2] + 2 for weight in self.weights) + self.num_branches * widest + 4
        if self.spec.patch_map is not None:  # pooling: its own entries, and a sum over positions and locations
            grid = self.spec.patch_map.grid(inputs[:1])
            roundings += grid.pooling.numel() + grid.pooling_error + 2
        return magnitude * (roundings * 2.0**-52)

    @property
    def _is_zero(self) -> bool:
        """Whether each branch, on finite inputs, is exactly zero."""
        if any(bias is not None for bias in self.hidden_biases):
            return False
        return bool(torch.stack([(weight == 0.0).flatten(1).all(dim=1) for weight in self.weights]).any(dim=0).all())

    def product_norms(self) -> Tensor:  # shape: (num_branches,)
        """Product of the Frobenius norms of each branch's layers."""
        return product_penalty(self.weights)

    def _on_patches(self, patch_map: PatchMap) -> ParallelWeights:
        """The same branches on patches, dense ones, without the output bias."""
        weights = (*self.weights[:-1], patch_map.to_patch_head(self.weights[-1]))
        return ParallelWeights(weights=weights, hidden_biases=(None,), output_bias=None, spec=self.spec.on_patches())

    def _sum_over_chunks(
        self, inputs: Tensor, view: Callable[[Tensor], Tensor], activations: Sequence[Callable[[Tensor], Tensor]]
    ) -> Tensor:
        if self.spec.patch_map is not None:
            grid = self.spec.patch_map.grid(inputs.to(self.weights[0].device)).viewed(view)
            outputs = grid.gather(self._on_patches(self.spec.patch_map)._sum_over_chunks(grid.rows, view, activations))
            return outputs if self.output_bias is None else outputs + view(self.output_bias)
        inputs = inputs.to(self.weights[0].device)
        block_outputs = self._folded(view, activations) or partial(self._sum_over_branches, view=view, activations=activations)
        blocks = row_blocks(inputs.shape[0] if inputs.ndim else 0, self.spec.gate_row_numbers)
        parts = [block_outputs(inputs[rows]) for rows in blocks]
        outputs = torch.cat(parts or [block_outputs(inputs)])
        return outputs if self.output_bias is None else outputs + view(self.output_bias)

    def _folded(
        self, view: Callable[[Tensor], Tensor], activations: Sequence[Callable[[Tensor], Tensor]]
    ) -> Callable[[Tensor], Tensor] | None:
        """The same from the products of the layers; ``None`` where these do not say it all, or save nothing."""
        is_gated, has_biases = self.spec.is_gated, any(bias is not None for bias in self.hidden_biases)
        if has_biases or not can_be_folded(self.weights, self.spec.negative_slopes, is_gated=is_gated):
            return None
        folded = folded_layers([view(weight) for weight in self.weights], activations[0], is_gated=is_gated)

        def block_outputs(inputs: Tensor) -> Tensor:
            matrix, masks = view(self.spec.branch_inputs(inputs)), self.spec.gate_masks(inputs)
            if masks is None:
                return matrix @ folded.T
            chunk = max(1, _CHUNK_NUMBERS // (folded.shape[1] * max(matrix.shape[0], 1)))
            return gated_sum(matrix, folded, masks, chunk)

        return block_outputs

    def _sum_over_branches(
        self, inputs: Tensor, view: Callable[[Tensor], Tensor], activations: Sequence[Callable[[Tensor], Tensor]]
    ) -> Tensor:
        """One block of samples; a bounded number of branches at a time."""
        matrix = view(self.spec.branch_inputs(inputs))
        # For all branches at once: the sign of a product that is zero up to rounding must not depend on chunks of branches.
        masks = self.spec.layer_gate_masks(inputs)
        width = max(max(self.spec.hidden_widths), 1)
        size = max(1, _CHUNK_NUMBERS // (width * max(matrix.shape[0], 1)))
        total = matrix.new_zeros(matrix.shape[0], self.spec.out_features)
        for start in range(0, self.num_branches, size):
            chunk = slice(start, start + size)
            total = total + stacked_outputs(
                matrix,
                [view(weight[chunk]) for weight in self.weights],
                [*[None if bias is None else view(bias[chunk]) for bias in self.hidden_biases], None],
                [_masked(a, None if mask is None else mask[chunk]) for a, mask in zip(activations, masks, strict=True)],
            )
        return total


def _frozen(tensor: Tensor) -> Tensor:
    check_local(tensor)
    if tensor.is_meta:
        raise InvalidInputError(
            "The weights are on the meta device and hold no numbers; expected real ones. Load them, or call `to_empty` and "
            "`reset_parameters`."
        )
    return tensor.detach().to("cpu", torch.float64, copy=True)


def _on_cpu(spec: BranchSpec) -> BranchSpec:
    """The same architecture with its gates on the CPU, where certification works."""
    activations = tuple(
        dataclasses.replace(activation, gate_vectors=tuple(vectors.cpu() for vectors in activation.gate_vectors))
        for activation in spec.activations
    )
    return dataclasses.replace(spec, activations=activations)


def _activate(negative_slope: float, hidden: Tensor) -> Tensor:
    return hidden if negative_slope == 1.0 else torch.where(hidden >= 0, hidden, negative_slope * hidden)


def _lift(hidden: Tensor) -> Tensor:
    return hidden + _UNDERFLOW


def _masked(activation: Callable[[Tensor], Tensor], mask: Tensor | None) -> Callable[[Tensor], Tensor]:
    return activation if mask is None else lambda hidden: activation(hidden) * mask.unsqueeze(1)
