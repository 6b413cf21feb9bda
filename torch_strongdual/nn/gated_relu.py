"""ReLU whose on and off pattern is fixed: a gate that is a function of the input."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_strongdual._checks import check_finite, check_floating, check_shape
from torch_strongdual.errors import InvalidInputError, ShapeError, UnsupportedModelError
from torch_strongdual.functional.gate_masks import gate_masks
from torch_strongdual.nn._fixed_gates import FixedGates

__all__ = ["GatedReLU"]


class GatedReLU(FixedGates):
    r"""Multiplies the hidden units of a branch by :math:`1[x'g \ge 0]`, where x is the input of the *branch*.

    A branch with gates is linear where its gates are open and zero elsewhere, so its dual norm is a singular value: gated
    networks are certified exactly, at any size. The gate is drawn once and not trained; it is a buffer, part of the
    ``state_dict``.

    Because the gate looks at the branch input and not at the hidden units, the layer has to be handed both.
    :class:`~torch_strongdual.nn.parallel_net.ParallelNet` and
    :class:`~torch_strongdual.nn.branch_sequential.BranchSequential` do that; a plain :class:`torch.nn.Sequential` cannot.
    In a ParallelNet every branch has a gate of its own.

    The sign is evaluated in float64, under autocast too, and the gate stays float64 under ``.half()`` and ``.to(dtype)``,
    so that training and certification see the same gates.

    Args:
        in_features: Number of features of the branch input (behind a Flatten).
        gate_vector: The gate g, shape ``(in_features,)``, copied; drawn from the standard normal distribution if ``None``.
        device: Where the gate lives.
        dtype: Accepted as by every layer; has no effect, the gate is float64.

    Shape:
        - hidden: ``(..., hidden_features)``
        - branch_input: ``(..., in_features)``, same leading dimensions
        - output: as hidden, same dtype

    Raises:
        ShapeError: If ``gate_vector`` or the branch input does not have ``in_features`` entries.
        InvalidInputError: If ``gate_vector`` is not finite or not floating point.
        UnsupportedModelError: If called without the branch input.

    Example:
        >>> gate = GatedReLU(2, gate_vector=torch.tensor([1.0, 0.0]))
        >>> gate(torch.tensor([[5.0], [-5.0]]), torch.tensor([[1.0, 3.0], [-1.0, 3.0]]))
        tensor([[5.],
                [-0.]])

    References:
        Fiat, Malach, Shalev-Shwartz, "Decoupling Gating from Linearity", 2019. https://arxiv.org/abs/1906.05032
    """

    def __init__(
        self,
        in_features: int,
        *,
        gate_vector: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if isinstance(in_features, bool) or not isinstance(in_features, int) or in_features < 1:
            raise InvalidInputError(
                f"`in_features` is {in_features!r}; expected an integer >= 1, the width of the branch input."
            )
        if dtype is not None and not dtype.is_floating_point:
            raise InvalidInputError(f"`dtype` is {dtype}; expected a real floating point dtype, or None.")
        if gate_vector is None:
            gate_vector = torch.randn(in_features, dtype=torch.float64, device=device)
        else:
            check_floating("gate_vector", gate_vector)
            check_shape("gate_vector", gate_vector, (in_features,), "one number for each feature of the branch input")
            if not gate_vector.is_meta:
                check_finite("gate_vector", gate_vector)
        super().__init__(gate_vector.to(device=device))
        self.in_features = in_features

    def forward(self, hidden: Tensor, branch_input: Tensor | None = None) -> Tensor:
        """Return ``hidden`` where the gate is open on ``branch_input``, zero elsewhere."""
        if branch_input is None:
            raise UnsupportedModelError(
                "GatedReLU was called without the branch input, which its gate is a function of: a plain nn.Sequential "
                "passes on hidden units only. Put the layers into ParallelNet or BranchSequential, or call the layer as "
                "gate(hidden, branch_input)."
            )
        if branch_input.ndim == 0 or branch_input.shape[-1] != self.in_features:
            raise ShapeError(
                f"`branch_input` has shape {tuple(branch_input.shape)}; expected (..., {self.in_features}), the input of the "
                "branch (behind a Flatten)."
            )
        if branch_input.shape[:-1] != hidden.shape[:-1]:
            raise ShapeError(
                f"`hidden` has shape {tuple(hidden.shape)} and `branch_input` {tuple(branch_input.shape)}; expected the same "
                "dimensions up to the last one."
            )
        mask = gate_masks(branch_input.reshape(-1, self.in_features), self.gate_vector[None])
        # A product, not a selection: NaN inputs must not come out as zeros.
        return hidden * mask.reshape(branch_input.shape[:-1]).unsqueeze(-1).to(hidden.dtype)

    def extra_repr(self) -> str:
        """Width of the branch input."""
        return f"in_features={self.in_features}"
