"""What searches for one output and sign found, for the next ones."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._depth.slope_cuts import Atom
from torch_strongdual.certification.oracles._depth.slope_search import SlopeSearch
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest

__all__ = ["SideBound", "SideMemory"]

FloatArray = NDArray[np.float64]

_CAPACITY = 160  # both signs of all directions of a cover
_NEAR = 0.3
_ACCURATE = 0.6  # of the tolerance: proofs aim at less


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SideBound:
    """Result for one output direction and sign.

    Args:
        upper: Proven bound on the one-sided maximum.
        search: Where the slope search ended; ``None`` if it was not needed.
        limited_by: Why the bound is not tighter, or an empty string.
        cells: Of a partition by signs of some samples, if there is one: their bounds, the largest of which is ``upper``.
    """

    upper: float
    search: SlopeSearch | None
    limited_by: str = ""
    cells: tuple[SideBound, ...] = ()

    @property
    def estimate(self) -> float:
        """What the search expects; ``inf`` without one."""
        return math.inf if self.search is None else self.search.estimate

    @property
    def is_unproven(self) -> bool:
        """Whether there are cases, none of them proven yet."""
        return bool(self.cells) and all(math.isinf(cell.upper) for cell in self.cells)

    def split(self, number: int, parts: tuple[SideBound, ...]) -> SideBound:
        """With cell ``number`` replaced by ``parts``."""
        cells = self.cells or (self,)
        cells = (
            *cells[:number],
            *(replace(part, upper=min(part.upper, cells[number].upper)) for part in parts),
            *cells[number + 1 :],
        )
        worst = max(cells, key=lambda cell: cell.upper)
        return replace(self, upper=min(self.upper, worst.upper), limited_by=worst.limited_by, cells=cells)

    def answers(self, request: BoundRequest, enough: float) -> bool:
        """Whether there is nothing to gain from more work on ``request``, ``enough`` being what slopes are searched for."""
        if self.upper <= request.floor:
            return True
        if self.search is None:
            return False
        is_proven = self.upper <= (1.0 + _ACCURATE * request.rtol) * max(self.search.estimate, enough)
        return self.search.is_at_best and is_proven


class SideMemory:
    """Bounds of the last duals by their exact values, so that work on them is gone on with, and units that matter nearby."""

    def __init__(self) -> None:
        self._sides: OrderedDict[bytes, SideBound] = OrderedDict()

    def recall(self, duals: FloatArray) -> SideBound | None:
        """What is known for exactly these duals."""
        return self._sides.get(duals.tobytes())

    def remember(self, duals: FloatArray, side: SideBound) -> SideBound:
        """Keep what was found, the smaller one of two bounds for the same duals; return it."""
        known = self.recall(duals)
        if known is not None and known.upper < side.upper:
            side = replace(side, upper=known.upper, limited_by=known.limited_by, cells=known.cells)
        self._sides[duals.tobytes()] = side
        self._sides.move_to_end(duals.tobytes())
        while len(self._sides) > _CAPACITY:
            self._sides.popitem(last=False)
        return side

    def atoms_near(self, duals: FloatArray) -> list[Atom]:
        """The mixture for the most similar duals, if they are similar at all."""
        best, found = _NEAR, []
        for key, side in self._sides.items():
            other = np.frombuffer(key)
            cosine = float(other @ duals) / max(float(np.linalg.norm(other) * np.linalg.norm(duals)), 1e-300)
            if cosine > best and side.search is not None and side.search.mixture:
                best, found = cosine, side.search.mixture
        return found
