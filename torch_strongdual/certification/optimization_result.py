"""What optimisation to a certificate returns: the network, its certificate, and how it got there."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from torch_strongdual.certification.certificate import Certificate
from torch_strongdual.nn import ParallelNet

__all__ = ["OptimizationRecord", "OptimizationResult", "OptimizationStop"]


class OptimizationStop(enum.Enum):
    """Why optimisation ended. The value is the advice shown to the user."""

    CERTIFIED = "The network is proven optimal to the tolerance."
    TIME = "The time is up. Raise `time_budget` to go on."
    STUCK = (
        "Neither the objective nor the bound got better any more: the bound of this oracle is as tight as it gets, or the "
        "problem asks for more precision. Pass a stronger `oracle`, or a larger `rtol`."
    )
    INTERRUPTED = "Interrupted; this is the best network found until then."
    FAILED = "A convex solver failed, or numbers overflowed; this is the best network found until then."


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizationRecord:
    """Where optimisation stood after one of its phases.

    Args:
        seconds: Since the start.
        objective: The best objective so far, rounded up: never above the one of the record before.
        dual_bound: The best proven lower bound so far, never below the one of the record before; ``-inf`` if none.
        num_branches: Of the best network, each counted with one last hidden unit.
        phase: ``"start"``, ``"descent"``, ``"refit"``, ``"growth"`` or ``"bound"``.
    """

    seconds: float
    objective: float
    dual_bound: float
    num_branches: int
    phase: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OptimizationResult:
    """A network, and how far at most it is from the best one.

    Args:
        net: The best network found.
        certificate: Of exactly this network.
        history: From start to end, one record after each phase.
        stop: Why optimisation ended.
    """

    net: ParallelNet
    certificate: Certificate
    history: tuple[OptimizationRecord, ...] = field(repr=False)
    stop: OptimizationStop

    def __str__(self) -> str:
        """The certificate, and why it ended there."""
        return f"{self.certificate}\n{self.net.num_branches} branches, {self.history[-1].seconds:.1f} s. {self.stop.value}"
