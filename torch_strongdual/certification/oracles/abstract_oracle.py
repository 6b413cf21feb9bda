"""The interface every dual norm oracle has."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.dual_norm_bound import DualNormBound
from torch_strongdual.nn.branch_spec import BranchSpec

__all__ = ["AbstractDualNormOracle", "BoundRequest", "common_refusal"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BoundRequest:
    """What the caller needs, so that an oracle can stop early.

    Args:
        rtol: Stop as soon as ``upper <= (1 + rtol) * lower``.
        floor: Stop as soon as ``upper <= floor``: values below it make no difference to the caller.
        known_upper: A bound proven before for the same dual point; only smaller ones are of use.
        target: If given, also stop as soon as ``upper <= target`` (proven small enough) or
            ``lower > (1 + rtol) * target`` (a counterexample is all the caller needs).
        deadline: Return what there is when it expires.
    """

    rtol: float = 1e-2
    floor: float = 0.0
    known_upper: float = math.inf
    target: float | None = None
    deadline: Deadline

    def is_met(self, upper: float, lower: float) -> bool:
        """Whether bounds ``upper`` and ``lower`` answer the request."""
        if upper <= max(self.floor, (1.0 + self.rtol) * lower):
            return True
        return self.target is not None and (upper <= self.target or lower > (1.0 + self.rtol) * self.target)

    def before(self, unit: float, allowance: float) -> BoundRequest:
        """What to ask of a bound that ``allowance`` is added to and ``unit`` multiplied with afterwards; a hair stricter.

        Args:
            unit: Above zero.
            allowance: In these units.
        """

        def divided(value: float) -> float:
            return max(0.0, value / unit * (1.0 - 1e-12) - allowance)

        return BoundRequest(
            rtol=self.rtol * (1.0 - 1e-9),
            floor=divided(self.floor),
            target=None if self.target is None else divided(self.target),
            deadline=self.deadline,
        )


def common_refusal(oracle: object, spec: BranchSpec) -> str | None:
    """Why no oracle for dense, homogeneous branches takes this one; ``None`` if it is of that kind."""
    if spec.patch_map is not None:
        name = type(oracle).__name__
        return f"{name} is for dense branches; PatchOracle({name}()) hands it the patches of {spec}"
    if spec.hidden_bias_layers:
        return f"layers {spec.hidden_bias_layers} have a hidden bias, which breaks homogeneity; use bias=False there"
    return None


class AbstractDualNormOracle(ABC):
    r"""Bounds on the dual norm :math:`\kappa(\Lambda) = \max_{\|\mathrm{branch}\| \le 1} \|\Lambda' \phi(X)\|_2`.

    The work is split in two: :meth:`init` does what depends on the data only (row-space reduction, factorisations) and
    is called once a run; :meth:`bound` is called for every dual point. Oracles are immutable: all that changes lives in
    the state.
    """

    @abstractmethod
    def supports(self, spec: BranchSpec) -> str | None:
        """Return ``None`` if branches of this kind can be bounded here, else a sentence that says why not and what would do."""

    @abstractmethod
    def init(self, spec: BranchSpec, inputs: Tensor) -> Any:
        """Prepare for the data.

        Args:
            spec: Architecture of the branches.
            inputs: Raw inputs, as the model gets them, shape ``(num_samples, ...)``.

        Returns:
            A state of the oracle's own type, to be passed to :meth:`bound`.

        Raises:
            UnsupportedModelError: If :meth:`supports` refuses.
        """

    @abstractmethod
    def bound(self, state: Any, dual_point: Tensor, request: BoundRequest) -> DualNormBound:
        """Bound the dual norm of the product form at ``dual_point`` (float64, shape ``(num_samples, out_features)``).

        Never raises for numerical reasons: where nothing can be proven, ``upper`` is ``inf`` and
        ``stats["limited_by"]`` says why.
        """
