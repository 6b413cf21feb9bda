"""Oracles that fail, each in its own way, and one that is late."""

from __future__ import annotations

import dataclasses
import math
import threading
from typing import Any

from torch import Tensor

from torch_strongdual.certification import DualNormBound
from torch_strongdual.certification.oracles import AbstractDualNormOracle, AngularSweepOracle, BoundRequest
from torch_strongdual.nn import BranchSpec

__all__ = ["HeldOracle", "LyingOracle", "RaisingOracle", "VacuousOracle"]


class _Wrapped(AbstractDualNormOracle):
    def __init__(self) -> None:
        self.inner = AngularSweepOracle()
        self.calls = 0

    def supports(self, spec: BranchSpec) -> str | None:
        return self.inner.supports(spec)

    def init(self, spec: BranchSpec, inputs: Tensor) -> Any:
        return self.inner.init(spec, inputs)

    def bound(self, state: Any, dual_point: Tensor, request: BoundRequest) -> DualNormBound:
        self.calls += 1
        return self.inner.bound(state, dual_point, request)


class RaisingOracle(_Wrapped):
    """Raises ``error`` while it is broken."""

    def __init__(self, error: BaseException, *, is_broken: bool = True) -> None:
        super().__init__()
        self.error, self.is_broken = error, is_broken

    def bound(self, state: Any, dual_point: Tensor, request: BoundRequest) -> DualNormBound:
        found = super().bound(state, dual_point, request)
        if self.is_broken:
            raise self.error
        return found


class VacuousOracle(_Wrapped):
    """Proves nothing."""

    def bound(self, state: Any, dual_point: Tensor, request: BoundRequest) -> DualNormBound:
        return DualNormBound(upper=math.inf, stats={"limited_by": "unwillingness"})


class LyingOracle(_Wrapped):
    """Gives upper bounds that are a thousand times too small."""

    def bound(self, state: Any, dual_point: Tensor, request: BoundRequest) -> DualNormBound:
        found = super().bound(state, dual_point, request)
        return dataclasses.replace(found, upper=1e-3 * found.upper, lower=0.0)


class HeldOracle(_Wrapped):
    """Answers as long as its gate is open, and otherwise once that is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.asked = threading.Event(), threading.Event()
        self.gate.set()

    def bound(self, state: Any, dual_point: Tensor, request: BoundRequest) -> DualNormBound:
        self.asked.set()
        assert self.gate.wait(60.0), "nobody opened the gate"
        return super().bound(state, dual_point, request)
