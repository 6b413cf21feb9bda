"""What a branch is, as certification sees it: widths, activations and biases, without the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["BranchActivation", "BranchSpec"]


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
        if self.is_gated:
            return "GatedReLU"
        return {0.0: "ReLU", 1.0: "Identity"}.get(self.negative_slope, f"LeakyReLU({self.negative_slope:g})")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BranchSpec:
    r"""Architecture of one branch: :math:`\phi(X) W_L` with :math:`\phi(X) = s(\ldots s(X W_1) \ldots W_{L-1})`.

    The dual norm, and therefore every certificate, is a property of this object and the data alone.

    Weights are passed about as a *branch weight list*: one tensor a layer, of shape ``(num_branches, out, in)`` in the layout
    of :class:`torch.nn.Linear`; if ``input_bias`` is set the first one has shape ``(num_branches, out, in + 1)``, its
    last column being the bias, which multiplies a column of ones.

    Args:
        widths: ``(branch_in_features, hidden_1, ..., hidden_{L-1}, out_features)``; the bias column is not counted.
        activations: What stands behind each hidden layer, ``L - 1`` entries.
        input_bias: Whether the first layer has a bias (regularised with its weight).
        hidden_bias_layers: Numbers (from 0, counting linear layers) of hidden layers past the first one that have a bias.
        output_bias: Whether the last layer has a bias, shared by all branches and not regularised.
        flatten: Whether inputs are flattened behind their first dimension.
    """

    widths: tuple[int, ...]
    activations: tuple[BranchActivation, ...]
    input_bias: bool = False
    hidden_bias_layers: tuple[int, ...] = ()
    output_bias: bool = False
    flatten: bool = False
    layer_names: tuple[str, ...] = field(default=())

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

    def branch_inputs(self, inputs: Tensor) -> Tensor:  # shape: (num_samples, in_features)
        """Return ``inputs`` as the float64 matrix the first layer multiplies: flattened, column of ones appended."""
        matrix = (inputs.flatten(1) if self.flatten else inputs).to(torch.float64)
        if self.input_bias:
            matrix = torch.cat([matrix, matrix.new_ones(matrix.shape[0], 1)], dim=1)
        return matrix

    def gate_masks(self, inputs: Tensor) -> Tensor | None:  # shape: (num_branches, num_samples)
        """Return the product of a branch's gates on every sample (0 or 1, float64), or ``None`` without gates."""
        flat = (inputs.flatten(1) if self.flatten else inputs).to(torch.float64)
        masks: Tensor | None = None
        for activation in self.activations:
            for vectors in activation.gate_vectors:
                mask = (vectors.to(torch.float64) @ flat.T >= 0).to(torch.float64)
                masks = mask if masks is None else masks * mask
        return masks

    def __str__(self) -> str:
        """``Linear(3, 8) -> ReLU -> Linear(8, 1)``."""
        parts = []
        for index, (fan_in, fan_out) in enumerate(zip(self.widths[:-1], self.widths[1:], strict=True)):
            parts.append(f"Linear({fan_in}, {fan_out})")
            if index < len(self.activations):
                parts.append(str(self.activations[index]))
        return " -> ".join(parts)
