"""What a branch is, as certification sees it: widths, activations and biases, without the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_strongdual.errors import InvalidInputError, ShapeError
from torch_strongdual.functional._row_blocks import row_blocks
from torch_strongdual.functional.branch_features import branch_features
from torch_strongdual.functional.gate_masks import gate_masks
from torch_strongdual.nn.patch_map import PatchMap

__all__ = ["BranchActivation", "BranchSpec"]

_CHUNK_NUMBERS = 2**22  # hidden units x patches held at a time: 32 MiB


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BranchActivation:
    """The map behind one hidden layer: ``max(t, 0) + negative_slope * min(t, 0)``, times fixed gates if there are any.

    Modules that follow each other without a linear layer between them are composed into one activation:
    slopes multiply, gates are collected.

    Args:
        negative_slope: 0 for ReLU, 1 for the identity, in between for leaky ReLU.
        gate_vectors: One tensor of shape ``(num_branches, branch_in_features)`` for each gated module; the gate of branch
            ``k`` is open on a sample ``x`` where ``x @ gate_vectors[k] >= 0``, evaluated in float64.
    """

    negative_slope: float = 0.0
    gate_vectors: tuple[Tensor, ...] = ()

    @property
    def is_gated(self) -> bool:
        """Whether fixed gates multiply the output."""
        return bool(self.gate_vectors)

    @property
    def is_identity(self) -> bool:
        """Whether nothing happens here: no gates, slope one."""
        return self.negative_slope == 1.0 and not self.gate_vectors

    def __str__(self) -> str:
        """Name of the activation, as a user would write it."""
        name = {0.0: "ReLU", 1.0: "Identity"}.get(self.negative_slope, f"LeakyReLU({self.negative_slope:g})")
        ungated = [] if self.is_gated and self.negative_slope == 1.0 else [name]
        return " -> ".join([*ungated, *["GatedReLU"] * len(self.gate_vectors)])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BranchSpec:
    r"""Architecture of one branch: :math:`\phi(X) W_L` with :math:`\phi(X) = s(\ldots s(X W_1) \ldots W_{L-1})`.

    The dual norm, and therefore every certificate, is a property of this object and the data alone.

    Weights are passed about as a *branch weight list*: one tensor a layer, of shape ``(num_branches, out, in)`` in the layout
    of :class:`torch.nn.Linear`; if ``input_bias`` is set the first one has shape ``(num_branches, out, in + 1)``, its
    last column being the bias, which multiplies a column of ones. Kernels of a convolution are rows, flattened.

    Args:
        widths: ``(branch_in_features, hidden_1, ..., hidden_{L-1}, out_features)``; the bias column is not counted.
        activations: What stands behind each hidden layer, ``L - 1`` entries.
        input_bias: Whether the first layer has a bias (regularised with its weight).
        hidden_bias_layers: Numbers (from 0, counting linear layers) of hidden layers past the first one that have a bias.
        output_bias: Whether the last layer has a bias, shared by all branches and not regularised.
        flatten: Whether inputs are flattened behind their first dimension.
        patch_map: For a convolutional branch, how its first layer is laid over the input and pooled; ``widths`` then holds the
            size of a kernel, the channels of the convolution and the outputs.

    Raises:
        ShapeError: If there is no layer, a width below one, or not one activation for each hidden layer.
    """

    widths: tuple[int, ...]
    activations: tuple[BranchActivation, ...]
    input_bias: bool = False
    hidden_bias_layers: tuple[int, ...] = ()
    output_bias: bool = False
    flatten: bool = False
    patch_map: PatchMap | None = None

    def __post_init__(self) -> None:
        """Refuse widths and activations that are not those of a network."""
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ShapeError(f"`widths` is {self.widths}; expected the input width, hidden widths and output width, all >= 1.")
        if len(self.activations) != len(self.widths) - 2:
            raise ShapeError(
                f"`activations` has {len(self.activations)} entries; expected {len(self.widths) - 2}, one behind each hidden "
                f"layer of widths {self.widths}."
            )

    @property
    def num_layers(self) -> int:
        """Number ``L`` of linear layers."""
        return len(self.widths) - 1

    @property
    def in_features(self) -> int:
        """Columns of the matrix the first layer multiplies, the column of ones included."""
        return self.widths[0] + int(self.input_bias)

    @property
    def out_features(self) -> int:
        """Number of outputs."""
        return self.widths[-1]

    @property
    def hidden_widths(self) -> tuple[int, ...]:
        """Widths of the hidden layers, first to last."""
        return self.widths[1:-1]

    @property
    def negative_slopes(self) -> tuple[float, ...]:
        """Slope left of zero of each activation."""
        return tuple(a.negative_slope for a in self.activations)

    @property
    def is_gated(self) -> bool:
        """Whether any activation has fixed gates."""
        return any(a.is_gated for a in self.activations)

    @property
    def is_linear(self) -> bool:
        """Whether all activations are the identity."""
        return all(a.is_identity for a in self.activations)

    @property
    def l2_path_factor(self) -> float:
        """``sqrt(product of hidden widths)``: the dual norm of the l2 path form is at most this times the product form's."""
        return math.sqrt(math.prod(self.hidden_widths))

    def on_patches(self) -> BranchSpec:
        """The dense branch that a convolutional one is on its patches (see :class:`PatchGrid`); a dense branch itself."""
        if self.patch_map is None:
            return self
        widths = (self.in_features, *self.hidden_widths, self.out_features * self.patch_map.num_locations)
        return BranchSpec(widths=widths, activations=self.activations)

    def features(
        self, inputs: Tensor, hidden_weights: Sequence[Tensor], masks: Tensor | None = None
    ) -> Tensor:  # shape: (num_branches, num_samples, features)
        """Features of branches in float64: what their last layers multiply.

        Args:
            inputs: As the model gets them.
            hidden_weights: Branch weight list without the last layer, float64.
            masks: Products of gates, shape ``(num_branches, num_samples)``.
        """
        if self.patch_map is None:
            return branch_features(self.branch_inputs(inputs), hidden_weights, self.negative_slopes, masks)
        grid = self.patch_map.grid(inputs)
        size = max(1, _CHUNK_NUMBERS // (self.hidden_widths[-1] * max(len(grid.rows), 1)))
        chunks = zip(*[torch.split(weight, size) for weight in hidden_weights], strict=True)
        return torch.cat([grid.pool(branch_features(grid.rows, chunk, self.negative_slopes)) for chunk in chunks])

    def branch_inputs(self, inputs: Tensor) -> Tensor:  # shape: (num_samples, in_features)
        """Return ``inputs`` as the float64 matrix the first layer multiplies: flattened, column of ones appended.

        For a convolutional branch its rows are all patches.

        Raises:
            ShapeError: If ``inputs`` are not samples of this width.
            InvalidInputError: If ``inputs`` are complex.
        """
        if self.patch_map is not None:
            return self.patch_map.grid(inputs).rows
        matrix = self._flat_inputs(inputs)
        if self.input_bias:
            matrix = torch.cat([matrix, matrix.new_ones(matrix.shape[0], 1)], dim=1)
        return matrix

    def gate_masks(self, inputs: Tensor) -> Tensor | None:  # shape: (num_branches, num_samples)
        """Return the product of a branch's gates on every sample (0 or 1, float64), or ``None`` without gates."""
        product: Tensor | None = None
        for mask in self.layer_gate_masks(inputs):
            if mask is not None:
                product = mask if product is None else product * mask
        return product

    def layer_gate_masks(self, inputs: Tensor) -> tuple[Tensor | None, ...]:  # shape: (num_branches, num_samples)
        """Return the same layer by layer: for each hidden layer the product of the gates that stand behind it, or ``None``.

        Evaluated in blocks of :attr:`gate_row_numbers` (see :func:`row_blocks`): samples that are one of these blocks have the
        signs that all samples together give.
        """
        if not self.is_gated:
            return (None,) * len(self.activations)
        blocks = row_blocks(inputs.shape[0] if inputs.ndim else 0, self.gate_row_numbers)
        parts = [self._block_gate_masks(inputs[rows]) for rows in blocks] or [self._block_gate_masks(inputs)]
        if len(parts) == 1:
            return parts[0]
        joined: list[Tensor | None] = []
        for layer in zip(*parts, strict=True):
            open_gates = [part for part in layer if part is not None]
            joined.append(torch.cat(open_gates, dim=1) if open_gates else None)
        return tuple(joined)

    @property
    def gate_row_numbers(self) -> int:
        """Numbers a sample that the evaluation of gates holds: they set the blocks in which it is done, everywhere alike."""
        return max([self.in_features, *(len(v) for a in self.activations for v in a.gate_vectors)])

    def _block_gate_masks(self, inputs: Tensor) -> tuple[Tensor | None, ...]:  # shape: (num_branches, num_samples)
        flat = self._flat_inputs(inputs)
        masks: list[Tensor | None] = []
        for activation in self.activations:
            open_gates = [gate_masks(flat, vectors).to(torch.float64) for vectors in activation.gate_vectors]
            masks.append(math.prod(open_gates[1:], start=open_gates[0]) if open_gates else None)
        return tuple(masks)

    def _flat_inputs(self, inputs: Tensor) -> Tensor:  # shape: (num_samples, widths[0])
        if inputs.is_complex():
            raise InvalidInputError(f"`inputs` have dtype {inputs.dtype}; expected real numbers.")
        matrix = inputs.flatten(1) if self.flatten and inputs.ndim >= 2 else inputs
        if matrix.ndim != 2 or matrix.shape[1] != self.widths[0]:
            wanted = (
                f"(num_samples, ...) with {self.widths[0]} numbers a sample"
                if self.flatten
                else f"(num_samples, {self.widths[0]})"
            )
            raise ShapeError(f"`inputs` have shape {tuple(inputs.shape)}; expected {wanted}.")
        return matrix.to(torch.float64)

    def __str__(self) -> str:
        """``Linear(3, 8) -> ReLU -> Linear(8, 1)``."""
        if self.patch_map is not None:
            first, behind = self.patch_map.texts(self.widths[1])
            width = self.widths[1] * self.patch_map.num_locations
            return f"{first} -> {self.activations[0]} -> {behind} -> Linear({width}, {self.out_features})"
        parts = []
        for index, (fan_in, fan_out) in enumerate(zip(self.widths[:-1], self.widths[1:], strict=True)):
            parts.append(f"Linear({fan_in}, {fan_out})")
            if index < len(self.activations):
                parts.append(str(self.activations[index]))
        return " -> ".join(parts)
