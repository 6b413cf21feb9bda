"""What a certification is of, as it was at one moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from torch_strongdual.nn import ParallelWeights

from ._trained_objective import PathPenalty

__all__ = ["Objective", "found_now"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Objective:
    """A network frozen in float64 on the CPU, so that training may go on, and the penalty it is trained with.

    Args:
        weights: Copies; no part of the network is shared.
        penalty: Strength and form of the path penalty.
    """

    weights: ParallelWeights
    penalty: PathPenalty

    @classmethod
    def of(cls, net: nn.Module, penalty: PathPenalty) -> Objective:
        """Copy the weights of ``net``, a ParallelNet or an ``nn.Sequential`` of its layers.

        Raises:
            UnsupportedModelError: See :func:`~torch_strongdual.nn.branch_spec_of.branch_spec_of`.
        """
        return cls(weights=ParallelWeights.from_module(net), penalty=penalty)


def found_now(find: Callable[[], Objective]) -> Callable[[], Objective]:
    """Call ``find`` at once, and give what it returned, or raise what it raised, whenever asked for later."""
    try:
        objective = find()
    except Exception as error:
        return _raising(error)
    return lambda: objective


def _raising(error: Exception) -> Callable[[], Objective]:
    def find() -> Objective:
        raise error

    return find
