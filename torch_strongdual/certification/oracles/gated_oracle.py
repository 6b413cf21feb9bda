"""The dual norm of gated branches: the largest of one spectral norm a gate, exact."""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.oracles.abstract_oracle import common_refusal
from torch_strongdual.certification.oracles.abstract_spectral_oracle import AbstractSpectralOracle
from torch_strongdual.nn.branch_spec import BranchSpec

__all__ = ["GatedOracle"]


@final
class GatedOracle(AbstractSpectralOracle):
    r"""Exact dual norm :math:`\max_k \|X' D_k \Lambda\|_2` of gated branches of any depth and width.

    :math:`D_k` holds the fixed gates of branch k on the samples; they are evaluated once, in ``init``, and gates that open
    on the same samples are bounded once. If time runs out before every gate was looked at, the rest is bounded by norms:
    valid, and loose.

    Example:
        >>> import torch
        >>> from torch_strongdual.certification.deadline import Deadline
        >>> from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
        >>> from torch_strongdual.nn.branch_spec import BranchActivation
        >>> gate = BranchActivation(negative_slope=1.0, gate_vectors=(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]),))
        >>> oracle = GatedOracle()
        >>> inputs = torch.tensor([[3.0, 0.0], [-1.0, 4.0]])
        >>> state = oracle.init(BranchSpec(widths=(2, 1, 1), activations=(gate,)), inputs)
        >>> found = oracle.bound(state, torch.ones(2, 1).double(), BoundRequest(deadline=Deadline()))
        >>> round(found.upper**2, 9), found.witnesses[0].gate_index
        (17.0, 1)

    References:
        Wang, Ergen, Pilanci, "Parallel Deep Neural Networks Have Zero Duality Gap", ICLR 2023.
        https://arxiv.org/abs/2110.06482
    """

    def supports(self, spec: BranchSpec) -> str | None:
        """Every activation is a fixed gate or the identity, and hidden layers past the first one have no bias."""
        if (reason := common_refusal(self, spec)) is not None:
            return reason
        if any(a.negative_slope != 1.0 for a in spec.activations):
            return (
                f"GatedOracle is for branches that are linear between fixed gates; slopes of this one: {spec.negative_slopes}"
            )
        return None

    def masks(self, spec: BranchSpec, inputs: Tensor) -> NDArray[np.float64] | None:
        """Evaluate the gates."""
        masks = spec.gate_masks(inputs)
        return None if masks is None else masks.numpy()
