"""How a convolutional branch sees its input: as patches, pooled linearly behind the activation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from torch_strongdual.errors import InvalidInputError, ShapeError
from torch_strongdual.functional.convolved_outputs import ConvolutionGeometry

__all__ = ["PatchGrid", "PatchMap"]

_UNIT = 2.0**-53


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatchGrid:
    r"""The patches of given inputs, and the weights with which pooling sums over them.

    A branch with kernels :math:`W` and last layer :math:`V` has the outputs
    :math:`f_i = \sum_q V_q \sum_p A_{qp} s(W z_{ip})`: patches :math:`z_{ip}` of sample i at positions p, pooled to locations
    q. So it is a branch of linear layers on all patches, with outputs :math:`g_{ip} \in R^{c Q}`, followed by the fixed linear
    map :meth:`gather`; and a dual point of the samples becomes one of the patches by its transpose :meth:`spread`.

    Args:
        rows: Patches as rows, those of a sample next to each other, float64, the column of ones of a bias included; shape
            ``(num_samples * num_positions, patch_size)``.
        pooling: A, shape ``(num_locations, num_positions)``, float64; all entries have the same sign.
        pooling_error: Bound on the relative error of its entries, in units of 2^-53.
    """

    rows: Tensor
    pooling: Tensor
    pooling_error: int

    @property
    def num_positions(self) -> int:
        """Patches in a sample."""
        return self.pooling.shape[1]

    def spread(self, dual_point: Tensor) -> Tensor:  # (num_samples, c) -> (rows, c * num_locations)
        """Transpose of :meth:`gather`: entry ``(i p, j q)`` is ``A[q, p] * dual_point[i, j]``."""
        spread = dual_point[:, None, :, None] * self.pooling.T[None, :, None, :]
        return spread.reshape(len(self.rows), -1)

    def gather(self, values: Tensor) -> Tensor:  # (rows, c * num_locations) -> (num_samples, c)
        """Outputs of the samples from those of the patches: ``sum over p, q of A[q, p] * values[i p, j q]``."""
        locations, positions = self.pooling.shape
        shaped = values.reshape(-1, positions, values.shape[1] // locations, locations)
        return torch.einsum("npcq,qp->nc", shaped, self.pooling)

    def pool(self, hidden: Tensor) -> Tensor:  # (branches, rows, h) -> (branches, num_samples, h * num_locations)
        """Pool and flatten hidden units as the network does: location by location within a unit."""
        num_samples = len(self.rows) // self.num_positions
        shaped = hidden.reshape(hidden.shape[0], num_samples, self.num_positions, hidden.shape[2])
        return torch.einsum("knph,qp->knhq", shaped, self.pooling).flatten(2)

    def viewed(self, view: Callable[[Tensor], Tensor]) -> PatchGrid:
        """The same with rows and pooling mapped: :func:`torch.abs` gives what rounding is measured in."""
        return PatchGrid(rows=view(self.rows), pooling=view(self.pooling), pooling_error=self.pooling_error)

    def pooled_limits(self, row_limits: Tensor) -> Tensor:  # (rows,) -> (num_samples, num_locations)
        """What pooled values are at most if no patch has a value above its entry of ``row_limits``; rounded up."""
        pooled = row_limits.reshape(-1, self.num_positions) @ self.pooling.abs().T
        return pooled * (1.0 + 4 * (self.num_positions + self.pooling_error + 8) * _UNIT)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatchMap:
    """Kernel positions and pooling of a branch ``convolution -> activation -> average pooling -> Flatten -> Linear``.

    Args:
        channels: Channels of the input.
        kernel_size: One number a dimension, one or two dimensions.
        geometry: Stride, padding and dilation of the convolution.
        pools: Average pooling modules behind the activation, possibly none.
        num_locations: What pooling leaves of the positions: features of the last layer over channels of the convolution.
        has_bias: Whether a column of ones is appended to the patches.

    Example:
        >>> geometry = ConvolutionGeometry(stride=(1,), padding=(0,), dilation=(1,))
        >>> pools = (nn.AdaptiveAvgPool1d(1),)
        >>> patches = PatchMap(channels=1, kernel_size=(2,), geometry=geometry, pools=pools, num_locations=1, has_bias=False)
        >>> grid = patches.grid(torch.tensor([[[1.0, 2.0, 3.0]]]))
        >>> grid.rows.tolist(), grid.pooling.tolist()
        ([[1.0, 2.0], [2.0, 3.0]], [[0.5, 0.5]])
    """

    channels: int
    kernel_size: tuple[int, ...]
    geometry: ConvolutionGeometry
    pools: tuple[nn.Module, ...]
    num_locations: int
    has_bias: bool

    @property
    def patch_size(self) -> int:
        """Numbers in a patch, the one of the bias not counted."""
        return self.channels * math.prod(self.kernel_size)

    def check_inputs(self, inputs: Tensor) -> None:
        """Raise unless ``inputs`` are images (or signals) that the branch takes.

        Raises:
            ShapeError: If their dimensions or channels are others, or pooling gives another number of locations.
            InvalidInputError: If they are complex.
        """
        if inputs.is_complex():
            raise InvalidInputError(f"`inputs` have dtype {inputs.dtype}; expected real numbers.")
        sizes = ("length",) if len(self.kernel_size) == 1 else ("height", "width")
        if inputs.ndim != 2 + len(sizes) or inputs.shape[1] != self.channels:
            wanted = f"(num_samples, {self.channels}, {', '.join(sizes)})"
            raise ShapeError(f"`inputs` has shape {tuple(inputs.shape)}; expected {wanted}, as the convolution takes.")
        positions = self._positions(inputs)
        if min(positions) < 1:
            raise ShapeError(
                f"`inputs` has shape {tuple(inputs.shape)}, smaller than the kernel {self.kernel_size}; expected larger ones."
            )
        locations = len(self._pooling(positions))
        if locations != self.num_locations:
            raise ShapeError(
                f"`inputs` has shape {tuple(inputs.shape)}, of which pooling leaves {locations} locations; expected "
                f"{self.num_locations}, as the nn.Linear behind nn.Flatten takes."
            )

    def grid(self, inputs: Tensor) -> PatchGrid:
        """Patches and pooling of ``inputs``, in float64.

        Raises:
            ShapeError: See :meth:`check_inputs`.
            InvalidInputError: See :meth:`check_inputs`.
        """
        self.check_inputs(inputs)
        padded = functional.pad(inputs.to(torch.float64), self.geometry.margins(self.kernel_size))
        if padded.ndim == 3:
            padded = padded.unsqueeze(2)
        missing = (1,) * (2 - len(self.kernel_size))
        columns = functional.unfold(
            padded,
            (*missing, *self.kernel_size),
            dilation=(*missing, *self.geometry.dilation),
            stride=(*missing, *self.geometry.stride),
        )
        rows = columns.transpose(1, 2).reshape(-1, self.patch_size)
        if self.has_bias:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        pooling = self._pooling(self._positions(inputs))
        # A sum of at most P numbers of one sign and a division for each pooling: relative errors, whatever the windows are.
        error = len(self.pools) * (pooling.shape[1] + 4)
        return PatchGrid(rows=rows, pooling=pooling.to(rows.device), pooling_error=error)

    def to_patch_head(self, head: Tensor) -> Tensor:  # (..., c, h * num_locations) -> (..., c * num_locations, h)
        """The last layer as the last layer of a branch on patches."""
        return head.unflatten(-1, (-1, self.num_locations)).transpose(-1, -2).flatten(-3, -2)  # type: ignore[no-untyped-call, no-any-return]

    def from_patch_head(self, head: Tensor) -> Tensor:  # (..., c * num_locations, h) -> (..., c, h * num_locations)
        """Undo :meth:`to_patch_head`."""
        return head.unflatten(-2, (-1, self.num_locations)).transpose(-1, -2).flatten(-2, -1)  # type: ignore[no-untyped-call, no-any-return]

    def texts(self, out_channels: int) -> tuple[str, str]:
        """What stands in front of the activation and behind it, as a user would write it."""
        geometry, ones = self.geometry, (1,) * len(self.kernel_size)
        options = {"stride": (geometry.stride, ones), "padding": (geometry.padding, (0,) * len(ones))}
        options["dilation"] = (geometry.dilation, ones)
        shown = "".join(f", {name}={value}" for name, (value, usual) in options.items() if value != usual)
        first = f"Conv{len(ones)}d({self.channels}, {out_channels}, kernel_size={self.kernel_size}{shown})"
        return first, " -> ".join([*map(repr, self.pools), "Flatten()"])

    def _positions(self, inputs: Tensor) -> tuple[int, ...]:
        """Kernel positions along each dimension."""
        padding = self.geometry.margins(self.kernel_size)
        positions = []
        for index, size in enumerate(inputs.shape[2:]):
            behind = 2 * (len(self.kernel_size) - 1 - index)
            padded = size + padding[behind] + padding[behind + 1]
            reach = self.geometry.dilation[index] * (self.kernel_size[index] - 1) + 1
            positions.append((padded - reach) // self.geometry.stride[index] + 1)
        return tuple(positions)

    def _pooling(self, positions: tuple[int, ...]) -> Tensor:  # (num_locations, num_positions)
        """What the pooling modules make of one position after the other."""
        number = math.prod(positions)
        pooled = torch.eye(number, dtype=torch.float64).reshape(number, 1, *positions)
        for pool in self.pools:
            pooled = pool(pooled)
        return pooled.reshape(number, -1).T.contiguous()
