"""What the oracles for branches that are linear between fixed gates share: spectral norms of ``X' D Lam``."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.dual_norm_bound import DualNormBound, Witness
from torch_strongdual.certification.oracles.abstract_oracle import AbstractDualNormOracle, BoundRequest
from torch_strongdual.certification.oracles.rank_one_branch import rank_one_branch
from torch_strongdual.certification.oracles.row_space import UNIT_ROUNDOFF, in_units, power_of_two_scale
from torch_strongdual.certification.oracles.spectral_norm import SpectralNorms
from torch_strongdual.errors import UnsupportedModelError
from torch_strongdual.nn.branch_spec import BranchSpec

__all__ = ["AbstractSpectralOracle", "SpectralState"]

FloatArray = NDArray[np.float64]

_CHUNK = 4_000_000  # numbers held at a time in products with masks
_CLOSE = 0.8  # singular vectors whose value is within this factor of the best become witnesses
_MAX_WITNESSES = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpectralState:
    """What lasts between calls.

    Args:
        spec: Architecture of the branches.
        matrix: The matrix the first layer multiplies, float64, divided by ``scale``, shape ``(num_samples, in_features)``.
        scale: A power of two.
        size: Upper bound on the Frobenius norm of ``matrix``; NaN or ``inf`` if the data are not finite.
        masks: Distinct products of gates, shape ``(num_masks, num_samples)``, or ``None`` without gates.
        gate_indices: For each mask the first branch that has it.
    """

    spec: BranchSpec
    matrix: FloatArray
    scale: float
    size: float
    masks: FloatArray | None
    gate_indices: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Candidate:
    """A singular pair of ``X' D_k Lam`` and its value."""

    value: float
    gate_index: int | None
    first: FloatArray
    last: FloatArray


class AbstractSpectralOracle(AbstractDualNormOracle):
    r"""Base of the oracles whose dual norm is :math:`\max_k \|X' D_k \Lambda\|_2`, for any number of layers.

    A branch behind fixed gates is a product of matrices with :math:`\|W_1 \cdots W_L\| \le \prod \|W_l\|_F`, so the upper
    bound holds for any depth and width, and branches of rank one attain it.
    """

    @abstractmethod
    def masks(self, spec: BranchSpec, inputs: Tensor) -> FloatArray | None:
        """Return the gate products, shape ``(num_branches, num_samples)``, or ``None`` if there are none."""

    def init(self, spec: BranchSpec, inputs: Tensor) -> SpectralState:
        """Scale the inputs and evaluate the gates: the same signs for all calls."""
        if (reason := self.supports(spec)) is not None:
            raise UnsupportedModelError(reason)
        inputs = inputs.detach().cpu()
        matrix: FloatArray = spec.branch_inputs(inputs).numpy()
        scale = power_of_two_scale(matrix)
        if scale != 1.0:
            matrix = matrix / scale
        masks = self.masks(spec, inputs)
        indices: tuple[int, ...] = (0,)
        if masks is not None:
            masks, first = np.unique(masks, axis=0, return_index=True)
            indices = tuple(int(i) for i in first)
        size = float(np.linalg.norm(matrix)) * (1.0 + 2.0 * (matrix.size + 4) * UNIT_ROUNDOFF)
        return SpectralState(spec=spec, matrix=matrix, scale=scale, size=size, masks=masks, gate_indices=indices)

    def bound(self, state: SpectralState, dual_point: Tensor, request: BoundRequest) -> DualNormBound:
        """Bound the dual norm; see :meth:`AbstractDualNormOracle.bound`."""
        begin = time.perf_counter()
        duals = dual_point.detach().cpu().numpy().astype(np.float64)
        if not (np.isfinite(duals).all() and math.isfinite(state.size)):
            return DualNormBound(upper=math.inf, stats={"limited_by": "non-finite numbers in the data or the dual point"})
        if not duals.any() or state.size == 0.0:
            return DualNormBound(upper=0.0, stats={"oracle": type(self).__name__})
        scale = power_of_two_scale(duals)
        duals = duals / scale
        size = state.size * float(np.linalg.norm(duals)) * (1.0 + 2.0 * (duals.size + 4) * UNIT_ROUNDOFF)
        # |fl(X'Lam) - X'Lam| <= gamma_n |X|'|Lam|, entry by entry; spare roundings cover underflow, as both norms are >= 1.
        rounding = 2.0 * (len(duals) + 4) * UNIT_ROUNDOFF * size
        upper, found, limited_by = 0.0, list[_Candidate](), ""
        for indices, products in _products(state, duals):
            norms = SpectralNorms.of(products)
            upper = max(upper, float(norms.upper.max()) + rounding)
            found = _best([*found, *_candidates(norms, indices)])
            is_last = indices[-1] == state.gate_indices[-1]
            if not is_last and (limit := _limit(request, found, state.scale, scale)):
                # Gates not looked at yet are covered by ||X||_F ||Lam||_F.
                upper, limited_by = size, limit
                break
        stats: dict[str, float | str] = {"oracle": type(self).__name__, "masks": float(len(state.gate_indices))}
        if limited_by:
            stats["limited_by"] = limited_by
        witnesses = _witnesses(state, found, scale)
        stats["seconds"] = time.perf_counter() - begin
        upper = in_units(upper * (1.0 + 8 * UNIT_ROUNDOFF), state.scale, scale, round_up=True)
        return DualNormBound(upper=upper, lower=witnesses[0].value if witnesses else 0.0, witnesses=witnesses, stats=stats)


def _products(state: SpectralState, duals: FloatArray) -> Iterator[tuple[list[int | None], FloatArray]]:
    """``X' D_k Lam`` for chunks of masks: their gate indices and a stack of shape ``(k, in_features, out_features)``."""
    if state.masks is None:
        yield [None], (state.matrix.T @ duals)[None]
        return
    num_samples, num_outputs = duals.shape
    length = max(1, _CHUNK // max(1, duals.size))
    for start in range(0, len(state.masks), length):
        masks = state.masks[start : start + length]
        masked = masks.T[:, :, None] * duals[:, None, :]  # (n, k, c)
        products = state.matrix.T @ masked.reshape(num_samples, -1)
        indices: list[int | None] = list(state.gate_indices[start : start + length])
        yield indices, products.reshape(-1, len(masks), num_outputs).transpose(1, 0, 2)


def _candidates(norms: SpectralNorms, indices: list[int | None]) -> Iterator[_Candidate]:
    """Singular pairs close to the best of a chunk."""
    floor = _CLOSE * float(norms.singular.max(initial=0.0))
    for k, j in np.argwhere((norms.singular >= floor) & (norms.singular > 0)):
        value = float(norms.singular[k, j])
        yield _Candidate(value=value, gate_index=indices[k], first=norms.left[k, :, j], last=norms.right[k, j])


def _best(candidates: list[_Candidate]) -> list[_Candidate]:
    """The largest few, those of early gates first among equals."""
    return sorted(candidates, key=lambda c: -c.value)[:_MAX_WITNESSES]


def _limit(request: BoundRequest, found: list[_Candidate], *units: float) -> str:
    """Why to stop before all gates are done, or nothing."""
    if request.deadline.expired:
        return "time: some gates were bounded by norms only"
    lower = in_units(found[0].value, *units) if found else 0.0
    return "a counterexample was found before all gates were done" if request.is_met(math.inf, lower) else ""


def _witnesses(state: SpectralState, found: list[_Candidate], scale: float) -> tuple[Witness, ...]:
    """Explicit branches for singular pairs close to the best."""
    witnesses = []
    for candidate in found:
        value = in_units(candidate.value, state.scale, scale)
        if candidate.value < _CLOSE * found[0].value or not 0.0 < value < math.inf:
            continue
        weights = rank_one_branch(
            state.spec,
            candidate.first / np.linalg.norm(candidate.first),
            candidate.last / np.linalg.norm(candidate.last),
        )
        witnesses.append(Witness(weights=weights, value=value, gate_index=candidate.gate_index))
    return tuple(witnesses)
