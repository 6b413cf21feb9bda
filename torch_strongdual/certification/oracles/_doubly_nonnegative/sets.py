"""The two sets whose intersection is the doubly nonnegative relaxation, and the projections on them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift

__all__ = ["ProductCone", "SemidefiniteFace", "cone_heights"]

_FEW_PAY = 150  # order of a matrix from which a few eigenvectors cost less than all


class SemidefiniteFace:
    r"""The moments :math:`E \Gamma E'`, :math:`\Gamma \succeq 0`, of a lift.

    Projection takes the positive part of one eigendecomposition of order 1 + r + |F|, thanks to an orthonormal basis of the
    range of E. It is cheap to apply: the open entries enter as :math:`(z_i + s_i)/\sqrt2`, orthogonal to what u spans.

    Args:
        lift: Gives E.
        device: Of the moments, which are float64.

    References:
        Oliveira, Wolkowicz, Xu, "ADMM for the SDP relaxation of the QAP", Math. Prog. Comp. 10, 2018.
    """

    def __init__(self, lift: Lift, *, device: torch.device) -> None:
        opened = np.flatnonzero(lift.signs == 0)
        self._length, self._rank = lift.length, lift.rank
        self._active = torch.from_numpy(lift.active.start + opened).to(device)
        self._inactive = torch.from_numpy(lift.inactive.start + opened).to(device)
        # z_i = (|x_i'u| + x_i'u)/2 and s_i = (|x_i'u| - x_i'u)/2 where the sign is open.
        open_half = 0.5 * lift.rows * (lift.signs == 0)[:, None]
        slopes = [open_half + lift.rows * (lift.signs > 0)[:, None], -open_half - lift.rows * (lift.signs < 0)[:, None]]
        linear = np.concatenate([np.eye(lift.rank), *slopes])
        triangle = np.linalg.cholesky(linear.T @ linear)
        self._linear = torch.from_numpy(np.linalg.solve(triangle, linear.T).T.copy()).to(device)  # (r + 2 n, r), orthonormal
        self._num_positive = len(opened)

    def centre(self) -> Tensor:
        """A matrix well inside, of trace one."""
        size = 1 + self._rank + len(self._active)
        identity = torch.eye(size, dtype=self._linear.dtype, device=self._linear.device)
        return self._expanded(identity / size**0.5)

    def project(self, target: Tensor) -> Tensor:
        """Nearest point to a symmetric ``target``; raises ``torch.linalg.LinAlgError`` where the eigendecomposition fails."""
        values, vectors = self._positive_part(self._coordinates(self._coordinates(target).T))
        return self._expanded(vectors * values.sqrt())

    def _coordinates(self, matrix: Tensor) -> Tensor:
        """``matrix B``, B the orthonormal basis of the range of E."""
        opened = (matrix[:, self._active] + matrix[:, self._inactive]) * 0.5**0.5
        return torch.cat([matrix[:, :1], matrix[:, 1:] @ self._linear, opened], dim=1)

    def _expanded(self, factor: Tensor) -> Tensor:
        """``B factor factor' B'``."""
        result = factor.new_empty(self._length, factor.shape[1])
        result[0] = factor[0]
        torch.mm(self._linear, factor[1 : 1 + self._rank], out=result[1:])
        opened = factor[1 + self._rank :] * 0.5**0.5
        result[self._active] += opened
        result[self._inactive] += opened
        return result @ result.T

    def _positive_part(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Positive eigenvalues with their vectors. Moments near a solution have few: then only so many are computed."""
        size = len(matrix)
        wanted = self._num_positive + 8
        if matrix.device.type == "cpu" and size >= _FEW_PAY and wanted < size // 4:
            values, vectors = _largest(matrix, wanted)
            if not values[0] > 0.0:
                return self._kept(values, vectors)
        return self._kept(*torch.linalg.eigh(matrix))

    def _kept(self, values: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        self._num_positive = int((values > 0.0).sum())
        first = len(values) - self._num_positive  # they ascend
        return values[first:], vectors[:, first:]


def _largest(matrix: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues, ascending, with their vectors."""
    from scipy.linalg import eigh

    size = len(matrix)
    try:
        values, vectors = eigh(matrix.numpy(), subset_by_index=(size - number, size - 1), driver="evr", check_finite=False)
    except (np.linalg.LinAlgError, ValueError) as error:
        raise torch.linalg.LinAlgError(str(error)) from error  # type: ignore[attr-defined]
    return torch.from_numpy(values), torch.from_numpy(vectors)


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
