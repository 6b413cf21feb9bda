"""How the optimum depends on the strength of the penalty: a number, and a proven interval around it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PathDecaySensitivity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PathDecaySensitivity:
    """The optimal objective at one strength, and its derivative in the strength.

    Args:
        path_decay: The strength.
        optimum: Objective of the network, in the units of the training objective; the optimum up to the certificate's gap.
        penalty: Penalty of the network summed over branches, without ``path_decay``: the derivative, if it is optimal.
        lower: Proven: no optimal network has a smaller penalty, and the optimum's derivative to the right is no smaller.
        upper: Proven: no optimal network has a larger penalty, and the optimum's derivative to the left is no larger;
            ``inf`` if nothing is proven.
    """

    path_decay: float
    optimum: float
    penalty: float
    lower: float
    upper: float

    def __str__(self) -> str:
        """One sentence."""
        return (
            f"optimum {self.optimum:.6g} at path_decay {self.path_decay:.6g}, derivative {self.penalty:.6g}, "
            f"proven in [{self.lower:.6g}, {self.upper:.6g}]"
        )
