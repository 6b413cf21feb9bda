"""The dual norm of linear branches: a spectral norm, exact at any size."""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.oracles.abstract_oracle import common_refusal
from torch_strongdual.certification.oracles.abstract_spectral_oracle import AbstractSpectralOracle
from torch_strongdual.nn.branch_spec import BranchSpec

__all__ = ["LinearOracle"]


@final
class LinearOracle(AbstractSpectralOracle):
    r"""Exact dual norm :math:`\|X' \Lambda\|_2` of linear branches of any depth and width.

    The product is bounded with its rounding error, its spectral norm through a checked decomposition: the upper bound is
    proven in floating point. Time is that of one product with the data.

    Example:
        >>> import torch
        >>> from torch_strongdual.certification.deadline import Deadline
        >>> from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
        >>> from torch_strongdual.nn.branch_spec import BranchActivation
        >>> identity = BranchActivation(negative_slope=1.0)
        >>> spec = BranchSpec(widths=(2, 2, 2, 1), activations=(identity, identity))
        >>> oracle = LinearOracle()
        >>> state = oracle.init(spec, torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        >>> found = oracle.bound(state, torch.ones(2, 1).double(), BoundRequest(deadline=Deadline()))
        >>> round(found.upper, 9), round(found.lower, 9)
        (5.0, 5.0)

    References:
        Wang, Ergen, Pilanci, "Parallel Deep Neural Networks Have Zero Duality Gap", ICLR 2023.
        https://arxiv.org/abs/2110.06482
    """

    def supports(self, spec: BranchSpec) -> str | None:
        """All activations are the identity, and hidden layers past the first one have no bias."""
        if (reason := common_refusal(self, spec)) is not None:
            return reason
        if not spec.is_linear:
            return f"LinearOracle is for branches without activations; this one is {spec}"
        return None

    def masks(self, spec: BranchSpec, inputs: Tensor) -> NDArray[np.float64] | None:
        """Return ``None``: there are no gates."""
        return None
