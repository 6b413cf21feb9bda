"""Violating branches for any architecture, without any proof."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.dual_norm_bound import DualNormBound, Witness, distinct_witnesses
from torch_strongdual.certification.oracles.abstract_oracle import AbstractDualNormOracle, BoundRequest, common_refusal
from torch_strongdual.certification.oracles.abstract_two_layer_oracle import AbstractTwoLayerOracle
from torch_strongdual.certification.oracles.branch_ascent import ascend_branches, branch_images, unit_layers
from torch_strongdual.certification.oracles.gated_oracle import GatedOracle
from torch_strongdual.certification.oracles.local_ascent import local_maxima
from torch_strongdual.certification.oracles.row_space import power_of_two_scale
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem
from torch_strongdual.errors import UnsupportedModelError
from torch_strongdual.nn.branch_spec import BranchActivation, BranchSpec

__all__ = ["LocalSearch", "LocalSearchState"]

_NUMBERS_AT_A_TIME = 8_000_000
_MAX_SEARCH_WIDTH = 16
_MAX_WITNESSES = 16
_CLOSE = 0.9995  # cosine of about two degrees


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LocalSearchState:
    """What lasts between calls.

    Args:
        spec: Architecture of the branches.
        inputs: The matrix the first layer multiplies, float64, divided by ``scale``.
        scale: A power of two.
        masks: Products of gates, or ``None``.
        shallow_spec: Branches of one unit a layer as a two-layer (or gated) branch, or ``None`` where there is no such thing.
        shallow_state: State of the oracle for them.
    """

    spec: BranchSpec
    inputs: Tensor
    scale: float
    masks: Tensor | None
    shallow_spec: BranchSpec | None
    shallow_state: Any


@final
class LocalSearch(AbstractDualNormOracle):
    """Lower bounds and witnesses by local ascent: any widths, any depth, gates or not. The upper bound is always ``inf``.

    Two layers: ascent on the sphere problem. More: gradient ascent over explicit branches, started from random ones and
    from the maximisers among branches with one unit a layer; for ReLU the latter are the two-layer ones, so that the
    result is never below what is found for two layers. Hidden layers wider than 16 are searched as if they had 16 units.

    Args:
        num_starts: Number of random branches to start from (fewer on large data).
        num_steps: Gradient steps from each.
        seed: Of the random starts.

    Example:
        >>> from torch_strongdual.certification.deadline import Deadline
        >>> spec = BranchSpec(widths=(2, 2, 2, 1), activations=(BranchActivation(), BranchActivation()))
        >>> oracle = LocalSearch()
        >>> state = oracle.init(spec, torch.eye(2))
        >>> found = oracle.bound(state, torch.tensor([[3.0], [4.0]]).double(), BoundRequest(deadline=Deadline()))
        >>> round(found.lower, 6), found.upper
        (5.0, inf)
    """

    def __init__(self, *, num_starts: int = 48, num_steps: int = 80, seed: int = 0) -> None:
        self._num_starts = num_starts
        self._num_steps = num_steps
        self._seed = seed

    def supports(self, spec: BranchSpec) -> str | None:
        """Everything but hidden biases past the first layer."""
        return common_refusal(self, spec)

    def init(self, spec: BranchSpec, inputs: Tensor) -> LocalSearchState:
        """Scale the inputs, evaluate the gates."""
        if (reason := self.supports(spec)) is not None:
            raise UnsupportedModelError(reason)
        inputs = inputs.detach().cpu()
        matrix = spec.branch_inputs(inputs)
        scale = power_of_two_scale(matrix.numpy())
        shallow = _shallow_spec(spec)
        is_usable = shallow is not None and bool(torch.isfinite(matrix).all())
        return LocalSearchState(
            spec=spec,
            inputs=matrix / scale,
            scale=scale,
            masks=spec.gate_masks(inputs),
            shallow_spec=shallow if is_usable else None,
            shallow_state=_shallow_oracle(shallow).init(shallow, inputs) if shallow is not None and is_usable else None,
        )

    def bound(self, state: LocalSearchState, dual_point: Tensor, request: BoundRequest) -> DualNormBound:
        """Search; see :meth:`AbstractDualNormOracle.bound`."""
        begin = time.perf_counter()
        duals = dual_point.detach().cpu().to(torch.float64)
        if not bool(torch.isfinite(duals).all() and torch.isfinite(state.inputs).all()):
            return DualNormBound(upper=math.inf, stats={"limited_by": "non-finite numbers in the data or the dual point"})
        witnesses: list[Witness] = []
        if bool(duals.any()) and bool(state.inputs.any()) and not request.deadline.expired:
            witnesses = self._search(state, duals, request)
        return DualNormBound(
            upper=math.inf,
            lower=witnesses[0].value if witnesses else 0.0,
            witnesses=tuple(witnesses),
            stats={
                "oracle": "LocalSearch",
                "limited_by": "local search proves no upper bound",
                "seconds": time.perf_counter() - begin,
            },
        )

    def _search(self, state: LocalSearchState, duals: Tensor, request: BoundRequest) -> list[Witness]:
        """Branches of one unit a layer, and unless they are all there is to find, ascent from them and random ones."""
        shallow = self._shallow_witnesses(state, duals, request)
        best = shallow[0].value if shallow else 0.0
        is_complete = state.spec.num_layers == 2 or all(s == 1.0 for s in state.spec.negative_slopes)
        if (shallow and is_complete) or request.is_met(math.inf, best):
            return shallow
        scale = power_of_two_scale(duals.numpy())
        gates, starts = self._starts(state, shallow)
        masks = None if state.masks is None else state.masks[gates]
        slopes = state.spec.negative_slopes
        scaled = duals / scale
        layers = ascend_branches(
            state.inputs, scaled, starts, slopes, masks, deadline=request.deadline, num_steps=self._num_steps
        )
        images = branch_images(state.inputs, scaled, layers, slopes, masks)
        deep = _witnesses(state, layers, images, gates, state.scale * scale)
        return distinct_witnesses([*shallow, *deep], number=_MAX_WITNESSES, cosine=_CLOSE)

    def _shallow_witnesses(self, state: LocalSearchState, duals: Tensor, request: BoundRequest) -> list[Witness]:
        """Maximisers among branches with one unit a layer, in the widths of the spec."""
        if state.shallow_spec is None:
            return []
        found = _shallow_oracle(state.shallow_spec).bound(state.shallow_state, duals, request)
        return list(found.witnesses)

    def _starts(self, state: LocalSearchState, shallow: list[Witness]) -> tuple[Tensor, list[Tensor]]:
        """Gate indices and hidden layers: random branches, the shallow ones, and the shallow ones shaken."""
        generator = torch.Generator().manual_seed(self._seed)
        widths = (state.spec.in_features, *(min(h, _MAX_SEARCH_WIDTH) for h in state.spec.hidden_widths))
        room = _NUMBERS_AT_A_TIME // max(1, state.inputs.shape[0] * max(widths[1:]))
        number = max(2, min(self._num_starts, room))
        shapes = list(zip(widths[1:], widths[:-1], strict=True))
        layers = [torch.randn(number, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
        for layer in layers[1:]:
            layer[::2] = layer[::2].abs()  # non-negative layers keep what is active active
        known = [[w.weights[i][:out, :fan_in] for w in shallow] for i, (out, fan_in) in enumerate(shapes)]
        if shallow:
            exact = [torch.stack(stack) for stack in known]
            shaken = [s + 0.2 * torch.randn(s.shape, generator=generator, dtype=s.dtype) for s in exact]
            layers = [torch.cat(parts) for parts in zip(exact, shaken, layers, strict=True)]
        gates = torch.arange(len(layers[0])) % (1 if state.masks is None else len(state.masks))
        for index, witness in enumerate(2 * shallow):
            gates[index] = witness.gate_index or 0
        return gates, unit_layers(layers)


class _SphereAscent(AbstractTwoLayerOracle):
    """Local maxima of the sphere problem, without an upper bound."""

    def maximise(self, problem: SphereProblem, request: BoundRequest, starts: NDArray[np.float64]) -> SphereBound:
        """Ascend, unless that was already done for each side of one output."""
        points = starts
        if not (problem.one_sided and len(starts)):
            points = local_maxima(problem, starts if len(starts) else None, deadline=request.deadline.fraction(0.3))
        lower = float(np.max(problem.values(points), initial=0.0))
        return SphereBound(upper=math.inf, lower=lower, points=points)


def _shallow_oracle(spec: BranchSpec) -> AbstractDualNormOracle:
    """What finds the best branch of one unit a layer."""
    return GatedOracle() if all(s == 1.0 for s in spec.negative_slopes) else _SphereAscent()


def _shallow_spec(spec: BranchSpec) -> BranchSpec | None:
    """The spec with all bends gathered in the first activation: the same function of branches with one unit a layer.

    With weights +1 between them, (leaky) ReLUs compose to one whose slope is the product. ``None`` for gated ones that bend.
    """
    slope = math.prod(spec.negative_slopes)
    if spec.is_gated:
        return spec if all(s == 1.0 for s in spec.negative_slopes) else None
    rest = (BranchActivation(negative_slope=1.0),) * (len(spec.activations) - 1)
    first = BranchActivation(negative_slope=slope)
    return BranchSpec(widths=spec.widths, activations=(first, *rest), input_bias=spec.input_bias, flatten=spec.flatten)


def _witnesses(state: LocalSearchState, layers: list[Tensor], images: Tensor, gates: Tensor, unit: float) -> list[Witness]:
    """Branches of the spec's widths with their best last layer, valued."""
    values = torch.linalg.vector_norm(images, dim=(1, 2))
    widths = (state.spec.in_features, *state.spec.hidden_widths)
    witnesses = []
    for k in torch.argsort(-values, stable=True).tolist():
        value = float(values[k])
        if not 0.0 < value * unit < math.inf:
            continue
        weights = [layer[k] for layer in layers] + [images[k] / value]
        fans = [*zip(widths[1:], widths[:-1], strict=True), (state.spec.out_features, widths[-1])]
        padded = tuple(_padded(w, shape) for w, shape in zip(weights, fans, strict=True))
        gate = int(gates[k]) if state.masks is not None else None
        witnesses.append(Witness(weights=padded, value=value * unit, gate_index=gate))
    return witnesses


def _padded(weight: Tensor, shape: tuple[int, int]) -> Tensor:
    """``weight`` with zeros for the units that were not searched, scaled to norm one."""
    whole = weight.new_zeros(shape)
    whole[: weight.shape[0], : weight.shape[1]] = weight
    scaled: Tensor = whole / torch.linalg.vector_norm(whole)
    return scaled
