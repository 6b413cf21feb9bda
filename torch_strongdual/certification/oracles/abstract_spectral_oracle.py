"""What the oracles for branches that are linear between fixed gates share: spectral norms of ``X' D Lam``."""

from __future__ import annotations

import dataclasses
import math
import time
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.dual_norm_bound import DualNormBound, Witness
from torch_strongdual.certification.oracles._packed_gates import PackedGates
from torch_strongdual.certification.oracles.abstract_oracle import AbstractDualNormOracle, BoundRequest
from torch_strongdual.certification.oracles.rank_one_branch import rank_one_branch
from torch_strongdual.certification.oracles.row_space import UNIT_ROUNDOFF, in_units, power_of_two_scale
from torch_strongdual.certification.oracles.spectral_norm import SpectralNorms
from torch_strongdual.errors import UnsupportedModelError
from torch_strongdual.functional._row_blocks import row_blocks
from torch_strongdual.nn.branch_spec import BranchSpec

__all__ = ["AbstractSpectralOracle", "SpectralState"]

FloatArray = NDArray[np.float64]

_CHUNK = 2**20  # numbers of all products ``X' D_k Lam`` that are formed at a time: 8 MiB
_GATED_DUALS = 2**22  # numbers of all ``D_k Lam`` on a block of samples that are formed at a time: 32 MiB
_CLOSE = 0.8  # singular vectors whose value is within this factor of the best become witnesses
_MAX_WITNESSES = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpectralState:
    """What lasts between calls. The data are those given, in their own dtype: no copy is made.

    Args:
        spec: Architecture of the branches.
        inputs: Raw inputs, on the CPU.
        scale: A power of two, of the size of the largest number in ``inputs``.
        size: Upper bound on the Frobenius norm of the matrix the first layer multiplies, divided by ``scale``; NaN or ``inf``
            if the data are not finite.
        gates: Which samples the distinct products of gates let through; ``None`` without gates.
    """

    spec: BranchSpec
    inputs: Tensor
    scale: float
    size: float
    gates: PackedGates | None

    def blocks(self) -> Iterator[slice]:
        """Samples that are worked on at a time."""
        return row_blocks(len(self.inputs), self.spec.in_features)

    def matrix(self, rows: slice) -> FloatArray:  # shape: (len(rows), in_features)
        """Float64 rows of the matrix the first layer multiplies, divided by ``scale``."""
        matrix: FloatArray = self.spec.branch_inputs(self.inputs[rows]).numpy()
        return matrix if self.scale == 1.0 else matrix / self.scale


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
        """Return the gate products on some samples, shape ``(num_branches, num_samples)``, or ``None`` if there are none."""

    def init(self, spec: BranchSpec, inputs: Tensor) -> SpectralState:
        """Measure the inputs and evaluate the gates, block by block: the same signs for all calls."""
        if (reason := self.supports(spec)) is not None:
            raise UnsupportedModelError(reason)
        inputs = inputs.detach().cpu()
        unscaled = SpectralState(spec=spec, inputs=inputs, scale=1.0, size=math.nan, gates=None)
        peaks = [float(np.max(np.abs(unscaled.matrix(rows)), initial=0.0)) for rows in unscaled.blocks()]
        largest = np.array(peaks)
        if not np.isfinite(largest).all():
            return unscaled
        state = dataclasses.replace(unscaled, scale=power_of_two_scale(largest))
        parts = [float(np.linalg.norm(state.matrix(rows))) for rows in state.blocks()]
        # Squares are summed within blocks and over blocks, and each block's root is squared again: all relative errors.
        size = float(np.linalg.norm(parts)) * (1.0 + 2.0 * (inputs.numel() + len(inputs) + 8) * UNIT_ROUNDOFF)
        gates = PackedGates.of(len(inputs), spec.gate_row_numbers, lambda rows: self.masks(spec, inputs[rows]))
        return dataclasses.replace(state, size=size, gates=gates)

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
        # |fl(X'Lam) - X'Lam| <= gamma_n |X|'|Lam|, entry by entry, whatever the blocks and the order in which they are summed;
        # spare roundings cover underflow, as both norms are >= 1.
        rounding = 2.0 * (len(duals) + 4) * UNIT_ROUNDOFF * size
        upper, found, limited_by = 0.0, list[_Candidate](), ""
        for gate_numbers in _gate_groups(state, duals):
            products = _products(state, duals, gate_numbers, request)
            if products is None:
                upper, limited_by = size, _OUT_OF_TIME
                break
            norms = SpectralNorms.of(products)
            upper = max(upper, float(norms.upper.max()) + rounding)
            found = _best([*found, *_candidates(norms, _indices(state, gate_numbers))])
            is_last = gate_numbers.stop == _num_products(state)
            if not is_last and (limit := _limit(request, found, state.scale, scale)):
                # Gates not looked at yet are covered by ||X||_F ||Lam||_F.
                upper, limited_by = size, limit
                break
        stats: dict[str, float | str] = {"oracle": type(self).__name__, "masks": float(_num_products(state))}
        if limited_by:
            stats["limited_by"] = limited_by
        witnesses = _witnesses(state, found, scale)
        stats["seconds"] = time.perf_counter() - begin
        upper = in_units(upper * (1.0 + 8 * UNIT_ROUNDOFF), state.scale, scale, round_up=True)
        return DualNormBound(upper=upper, lower=witnesses[0].value if witnesses else 0.0, witnesses=witnesses, stats=stats)


_OUT_OF_TIME = "time: some gates were bounded by norms only"


def _num_products(state: SpectralState) -> int:
    return 1 if state.gates is None else len(state.gates)


def _indices(state: SpectralState, numbers: slice) -> list[int | None]:
    """The first branch that has each of these gates."""
    return [None] if state.gates is None else list(state.gates.first_branches[numbers])


def _gate_groups(state: SpectralState, duals: FloatArray) -> Iterator[slice]:
    """Gates whose products with the data are formed together."""
    num_rows = max((rows.stop - rows.start for rows in state.blocks()), default=0)
    numbers = max(1, state.spec.in_features * duals.shape[1]), max(1, num_rows * duals.shape[1])
    length = max(1, min(_CHUNK // numbers[0], _GATED_DUALS // numbers[1]))
    for start in range(0, _num_products(state), length):
        yield slice(start, min(start + length, _num_products(state)))


def _products(
    state: SpectralState, duals: FloatArray, gate_numbers: slice, request: BoundRequest
) -> FloatArray | None:  # shape: (gates, in_features, out_features)
    """``X' D_k Lam`` for some gates, summed over blocks of samples; ``None`` if time runs out between two of them."""
    number, num_outputs = gate_numbers.stop - gate_numbers.start, duals.shape[1]
    total = np.zeros((state.spec.in_features, number * num_outputs))
    for rows in state.blocks():
        if rows.start and request.deadline.expired:
            return None
        weights = duals[rows]
        if state.gates is not None:
            masks = state.gates.masks(gate_numbers, rows)
            weights = (masks.T[:, :, None] * weights[:, None, :]).reshape(len(weights), -1)  # samples, gates, outputs
        total += state.matrix(rows).T @ weights
    stacked: FloatArray = total.reshape(-1, number, num_outputs).transpose(1, 0, 2)
    return stacked


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
        return _OUT_OF_TIME
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
