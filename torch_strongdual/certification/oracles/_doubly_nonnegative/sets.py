"""The two sets whose intersection is the doubly nonnegative relaxation, and the projections on them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from torch_strongdual.certification.oracles._doubly_nonnegative.contraction import Contraction
from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift

__all__ = ["ProductCone", "SemidefiniteFace", "cone_heights"]


class SemidefiniteFace:
    r"""The moments :math:`E \Gamma E'`, :math:`\Gamma \succeq 0`, of a lift.

    Projection takes one eigendecomposition of order 1 + r + \|F\|, thanks to an orthonormal basis of the range of E.

    Args:
        lift: Gives E.
        device: Of the moments, which are float64.

    References:
        Oliveira, Wolkowicz, Xu, "ADMM for the SDP relaxation of the QAP", Math. Prog. Comp. 10, 2018.
    """

    def __init__(self, lift: Lift, *, device: torch.device) -> None:
        basis, triangle = np.linalg.qr(lift.expansion)  # E = QR; its singular values are at least 1
        self._basis = torch.from_numpy(basis).to(device)  # (1 + r + 2 n, 1 + r + |F|)
        self._inverse = torch.from_numpy(np.linalg.inv(triangle)).to(device)
        self._contraction = Contraction(lift, device=device)

    def centre(self) -> Tensor:
        """A matrix well inside, of trace one."""
        result: Tensor = self._basis @ self._basis.T / self._basis.shape[1]
        return result

    def project(self, target: Tensor) -> Tensor:
        """Nearest point; raises ``torch.linalg.LinAlgError`` where the eigendecomposition fails."""
        inner = self._inverse.T @ self._contraction(target) @ self._inverse
        values, vectors = torch.linalg.eigh(0.5 * (inner + inner.T))
        positive = values > 0.0
        factor = self._basis @ (vectors[:, positive] * values[positive].sqrt())
        result: Tensor = factor @ factor.T
        return result


class ProductCone:
    r"""Moments with nonnegative products of entries of z and s, :math:`Y_{z_i s_i} = 0`, and cones over u.

    The last are :math:`\|Y_{u z_i}\| \le Y_{1 z_i}` and :math:`\|Y_{u s_i}\| \le Y_{1 s_i}`. Besides,
    :math:`Y_{11} = \operatorname{tr} Y_{uu}`, and both are 1 if normalised.

    Args:
        lift: Gives the sizes.
        is_normalised: Whether the moments are of size one.
    """

    def __init__(self, lift: Lift, *, is_normalised: bool = True) -> None:
        self._rank, self._num_rows, self._is_normalised = lift.rank, lift.num_rows, is_normalised

    def project(self, target: Tensor) -> Tensor:
        """Nearest point."""
        first, number = 1 + self._rank, self._num_rows
        result = target.clone()
        result[first:, first:].clamp_(min=0.0)
        result[first : first + number, first + number :].fill_diagonal_(0.0)
        result[first + number :, first : first + number].fill_diagonal_(0.0)
        norms = torch.linalg.norm(target[1:first, first:], dim=0)
        heights = cone_heights(target[0, first:], norms)
        result[0, first:], result[first:, 0] = heights, heights
        vectors = target[1:first, first:] * (heights / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=1.0)
        result[1:first, first:], result[first:, 1:first] = vectors, vectors.T
        diagonal = result.diagonal()[1:first]
        if self._is_normalised:
            result[0, 0] = 1.0
            diagonal += (1.0 - diagonal.sum()) / self._rank
        else:
            excess = (result[0, 0] - diagonal.sum()) / first
            result[0, 0] -= excess
            diagonal += excess
        return result


def cone_heights(heights: Tensor, norms: Tensor) -> Tensor:
    """Heights of the projections on ``||vector|| <= height`` of points with these heights and norms."""
    return torch.where(norms <= heights, heights, (0.5 * (heights + norms)).clamp(min=0.0))
