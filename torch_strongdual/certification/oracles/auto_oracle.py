"""The default oracle: picks the method from the architecture, then from the size of the reduced data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from torch_strongdual.certification.dual_norm_bound import DualNormBound
from torch_strongdual.certification.oracles.abstract_oracle import AbstractDualNormOracle, BoundRequest
from torch_strongdual.certification.oracles.auto_two_layer_oracle import AutoTwoLayerOracle
from torch_strongdual.certification.oracles.depth_recursion import DepthRecursion
from torch_strongdual.certification.oracles.gated_oracle import GatedOracle
from torch_strongdual.certification.oracles.linear_oracle import LinearOracle
from torch_strongdual.certification.oracles.patch_oracle import PatchOracle
from torch_strongdual.errors import InvalidInputError, UnsupportedModelError
from torch_strongdual.nn.branch_spec import BranchSpec

__all__ = ["AutoOracle", "AutoState", "oracle_or_default"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AutoState:
    """Which oracle was chosen for an architecture, and its state.

    Args:
        oracle: The one chosen.
        state: What its ``init`` returned.
    """

    oracle: AbstractDualNormOracle
    state: Any


@final
class AutoOracle(AbstractDualNormOracle):
    """Linear, gated, two-layer, deep or convolutional: the first family that supports the branch.

    ``stats["oracle"]`` of a bound names what was used.

    Args:
        two_layer: What to use where one activation is left; also inside the depth recursion.

    Example:
        >>> import torch
        >>> from torch_strongdual.certification.deadline import Deadline
        >>> from torch_strongdual.nn.branch_spec import BranchActivation
        >>> spec = BranchSpec(widths=(2, 1, 1), activations=(BranchActivation(),))
        >>> oracle = AutoOracle()
        >>> state = oracle.init(spec, torch.eye(2))
        >>> found = oracle.bound(state, torch.tensor([[3.0], [4.0]]), BoundRequest(deadline=Deadline(1.0)))
        >>> round(found.upper, 6), found.stats["oracle"]
        (5.0, 'AngularSweepOracle')
    """

    def __init__(self, *, two_layer: AutoTwoLayerOracle | None = None) -> None:
        inner = AutoTwoLayerOracle() if two_layer is None else two_layer
        patches = PatchOracle(LinearOracle()), PatchOracle(inner)
        self._families = (LinearOracle(), GatedOracle(), inner, DepthRecursion(inner), *patches)

    def supports(self, spec: BranchSpec) -> str | None:
        """Everything one of the families supports."""
        is_dense = spec.patch_map is None
        families = [family for family in self._families if isinstance(family, PatchOracle) != is_dense]
        reasons = [family.supports(spec) for family in families]
        return None if None in reasons else "; ".join(dict.fromkeys(r for r in reasons if r is not None))

    def init(self, spec: BranchSpec, inputs: Tensor) -> AutoState:
        """Choose, and prepare the choice."""
        for family in self._families:
            if family.supports(spec) is None:
                return AutoState(oracle=family, state=family.init(spec, inputs))
        raise UnsupportedModelError(f"No oracle bounds the dual norm of {spec}: {self.supports(spec)}.")

    def bound(self, state: AutoState, dual_point: Tensor, request: BoundRequest) -> DualNormBound:
        """Delegate to the oracle chosen by :meth:`init`."""
        return state.oracle.bound(state.state, dual_point, request)


def oracle_or_default(oracle: object) -> AbstractDualNormOracle:
    """The oracle that a caller passed, or an :class:`AutoOracle` for ``None``.

    Raises:
        InvalidInputError: If it is something else, such as the name or the class of an oracle.
    """
    if oracle is None:
        return AutoOracle()
    if not isinstance(oracle, AbstractDualNormOracle):
        raise InvalidInputError(f"`oracle` is {oracle!r}; expected an oracle object such as AutoOracle(), or None.")
    return oracle
