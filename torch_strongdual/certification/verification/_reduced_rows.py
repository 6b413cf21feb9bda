"""Coordinates of the row space, with what they lose evaluated in 60-digit decimals."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

__all__ = ["ReducedRows"]

FloatArray = NDArray[np.float64]

_DIGITS = 60
_MAX_PRODUCTS = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReducedRows:
    r"""``X = B V' + E`` with V orthonormal: ``X u = B (V'u) + E u`` for every u, and ``||V'u|| <= ||u||``.

    Args:
        rows: B, float64.
        row_losses: Norms of the rows of E, to 40 digits and rounded up.
    """

    rows: FloatArray
    row_losses: tuple[Decimal, ...]

    @classmethod
    def of(cls, matrix: FloatArray) -> ReducedRows | None:
        """Reduce ``matrix``; nothing is lost if its columns are independent. ``None`` if it is too large."""
        n, d = matrix.shape
        _, singular, right = np.linalg.svd(matrix / (np.abs(matrix).max() or 1.0), full_matrices=False)
        rank = int((singular > 4 * max(n, d) * 2.0**-53 * singular.max(initial=0.0)).sum())
        if rank == d:
            return cls(rows=matrix, row_losses=(Decimal(0),) * n)
        if matrix.size * max(rank, 1) > _MAX_PRODUCTS:
            return None
        with localcontext(Context(prec=_DIGITS)):
            basis = _orthonormal([[Decimal(entry) for entry in row] for row in right[:rank].tolist()])
            exact = [[Decimal(entry) for entry in row] for row in matrix.tolist()]
            rows = [[float(_dot(row, axis)) for axis in basis] for row in exact]
            losses = tuple(_loss(row, reduced, basis) for row, reduced in zip(exact, rows, strict=True))
        return cls(rows=np.array(rows).reshape(n, rank), row_losses=losses)

    def loss(self, duals: FloatArray, slope: float) -> Decimal:
        """Bound on the change of ``||Lam's(X u)||`` over the unit ball."""
        with localcontext(Context(prec=_DIGITS)):
            norms = (_dot(row, row).sqrt() for row in ([Decimal(entry) for entry in values] for values in duals.tolist()))
            total = sum((norm * loss for norm, loss in zip(norms, self.row_losses, strict=True)), Decimal(0))
            return total * max(Decimal(1), abs(Decimal(slope))) * (1 + Decimal("1e-40"))


def _orthonormal(vectors: list[list[Decimal]]) -> list[list[Decimal]]:
    """Gram-Schmidt, twice: the frame is orthonormal to 1e-55."""
    frame: list[list[Decimal]] = []
    for vector in vectors:
        for _ in range(2):
            for axis in frame:
                share = _dot(vector, axis)
                vector = [entry - share * other for entry, other in zip(vector, axis, strict=True)]
        length = _dot(vector, vector).sqrt()
        frame.append([entry / length for entry in vector])
    return frame


def _loss(row: list[Decimal], reduced: list[float], basis: list[list[Decimal]]) -> Decimal:
    left = list(row)
    for value, axis in zip(reduced, basis, strict=True):
        left = [entry - Decimal(value) * other for entry, other in zip(left, axis, strict=True)]
    # 1e-50 |x| covers the frame's defect of 1e-55 and the rounding of these operations.
    return _dot(left, left).sqrt() * (1 + Decimal("1e-40")) + Decimal("1e-50") * _dot(row, row).sqrt()


def _dot(first: list[Decimal], second: list[Decimal]) -> Decimal:
    return sum((a * b for a, b in zip(first, second, strict=True)), Decimal(0))
