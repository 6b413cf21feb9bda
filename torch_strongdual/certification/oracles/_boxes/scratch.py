"""Working memory of the compiled box searches, which allocate none themselves: that would take longer to compile."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["LANES", "CellScratch", "VectorScratch"]

LANES = 32  # rows of single precision that a compiled loop may take together: each sign of the duals is filled up to whole ones

FloatArray = NDArray[np.float64]
SingleArray = NDArray[np.float32]


class CellScratch(NamedTuple):
    """What both searches need, for ``rank`` coordinates and ``num_rows`` rows. Contents do not outlive a cell."""

    work: FloatArray  # (rank,)
    plain: FloatArray  # (rank,)
    total: FloatArray  # (rank,)
    gradient: FloatArray  # (rank,)
    hessian: FloatArray  # (rank, rank)
    small: FloatArray  # (6, rank - 1, rank - 1)
    lines: FloatArray  # (6, rank - 1)
    constants: FloatArray  # (3,)
    lams: FloatArray  # (num_rows,)
    over: NDArray[np.uint32]  # (num_rows,)
    slopes: FloatArray  # (num_rows,)
    near: SingleArray  # (rank, filled)
    single: SingleArray  # (3, filled)
    vectors: SingleArray  # (5, filled)

    @classmethod
    def of(cls, rank: int, num_rows: int) -> CellScratch:
        """Zeros of the right shapes."""
        filled = num_rows + 2 * LANES
        return cls(
            work=np.zeros(rank),
            plain=np.zeros(rank),
            total=np.zeros(rank),
            gradient=np.zeros(rank),
            hessian=np.zeros((rank, rank)),
            small=np.zeros((6, rank - 1, rank - 1)),
            lines=np.zeros((6, rank - 1)),
            constants=np.zeros(3),
            lams=np.zeros(num_rows),
            over=np.zeros(num_rows, dtype=np.uint32),
            slopes=np.zeros(num_rows),
            near=np.zeros((rank, filled), dtype=np.float32),
            single=np.zeros((3, filled), dtype=np.float32),
            vectors=np.zeros((5, filled), dtype=np.float32),
        )


class VectorScratch(NamedTuple):
    """What the search for several outputs needs besides."""

    low: FloatArray  # (rank,)
    spread: FloatArray  # (rank,)
    image: FloatArray  # (num_outputs,)
    ahead: FloatArray  # (num_outputs,)
    rest: FloatArray  # (num_outputs,)
    rest_slope: FloatArray  # (rank, num_outputs)
    parts: FloatArray  # (num_outputs,)
    gram: FloatArray  # (num_outputs, num_outputs)
    sides: FloatArray  # (num_outputs, num_rows)
    heights: FloatArray  # (num_rows,)
    near: FloatArray  # (rank, num_rows)
    reals: FloatArray  # (6, num_rows)
    places: NDArray[np.uint32]  # (num_rows,)

    @classmethod
    def of(cls, rank: int, num_rows: int, num_outputs: int) -> VectorScratch:
        """Zeros of the right shapes."""
        return cls(
            low=np.zeros(rank),
            spread=np.zeros(rank),
            image=np.zeros(num_outputs),
            ahead=np.zeros(num_outputs),
            rest=np.zeros(num_outputs),
            rest_slope=np.zeros((rank, num_outputs)),
            parts=np.zeros(num_outputs),
            gram=np.zeros((num_outputs, num_outputs)),
            sides=np.zeros((num_outputs, num_rows)),
            heights=np.zeros(num_rows),
            near=np.zeros((rank, num_rows)),
            reals=np.zeros((6, num_rows)),
            places=np.zeros(num_rows, dtype=np.uint32),
        )
