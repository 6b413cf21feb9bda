"""The numbers of a safe bound that multipliers leave open: any are valid, good ones are looked for here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift
from torch_strongdual.certification.oracles._quadratic.quadratic_majorant import secular_roots

__all__ = ["Levels", "best_levels"]

FloatArray = NDArray[np.float64]

_STEPS = np.geomspace(1e-9, 1.0, 10)  # of the price of z_i s_i above the least possible one, in units of the largest eigenvalue
_AROUND = np.array([0.9, 0.98, 1.0, 1.02, 1.1])
_ZOOMS, _BETWEEN = 2, 9  # finer looks around the best, of so many prices each
_MANY = 600  # open samples from which all eigenvectors take longer than the rest of a proof
_DEPTH = 8  # blocks of a Krylov space
_BESIDE = (1.0, 0.5, 2.0)  # distances from the largest eigenvalue that are tried exactly, in units of the best in that space


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """The numbers a, b and c of :func:`safe_upper`.

    Args:
        constant: a.
        curvature: b.
        price: c.
    """

    constant: float
    curvature: float
    price: float

    @property
    def total(self) -> float:
        """The bound, but for rounding."""
        return self.constant + self.curvature


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Form:
    """The reduced form by blocks: of (1, u), of z, and between them for a price c, ``cross + c tilt``."""

    corner: FloatArray
    coupling: FloatArray
    cross: FloatArray
    tilt: FloatArray

    @classmethod
    def of(cls, lift: Lift, reduced: FloatArray) -> _Form:
        first = 1 + lift.rank
        tilt = np.zeros((len(reduced) - first, first))
        tilt[:, 1:] = 0.5 * lift.rows[lift.signs == 0]
        return cls(corner=reduced[:first, :first], coupling=reduced[first:, first:], cross=reduced[first:, :first], tilt=tilt)

    def within(self, basis: FloatArray) -> _Form:
        """The same with z in the span of ``basis``."""
        coupling = basis.T @ (self.coupling @ basis)
        coupling = 0.5 * (coupling + coupling.T)
        return _Form(corner=self.corner, coupling=coupling, cross=basis.T @ self.cross, tilt=basis.T @ self.tilt)


def best_levels(lift: Lift, reduced: FloatArray) -> Levels:
    r"""Good a, b and c for a given form.

    With c large enough for :math:`K_{zz} \succ 0`, K is semidefinite iff :math:`\operatorname{diag}(a, bI) \succeq T(c)`, T the
    Schur complement on (1, u); the best a and b solve a secular equation. With many samples c is found in a Krylov space
    of :math:`H_{zz}`, which is sparse, and a and b by factorisations for that c and two beside it.

    Args:
        lift: What to maximise, and which signs are decided.
        reduced: :math:`H`, finite and symmetric, shape (1 + r + \|F\|, 1 + r + \|F\|).

    Raises:
        numpy.linalg.LinAlgError: If an eigendecomposition fails.
    """
    form = _Form.of(lift, reduced)
    if not len(form.coupling):
        return _levels_of(form.corner[None], np.zeros(1))[0]
    if len(form.coupling) >= _MANY:
        found = _best_of_many(form)
        if found is not None:
            return found
    return _best_of(form)[0]


def _best_of(form: _Form) -> tuple[Levels, float]:
    """The best levels of a form, from all eigenvectors; and the largest eigenvalue."""
    eigenvalues, vectors = np.linalg.eigh(form.coupling)
    cross, tilt = vectors.T @ form.cross, vectors.T @ form.tilt
    largest = max(float(np.abs(block).max()) for block in (form.corner, form.coupling, form.cross))
    scale = max(float(np.abs(eigenvalues).max()), 1e-3 * largest, 1e-100)

    def levels_at(steps: FloatArray) -> list[Levels]:
        prices = float(eigenvalues[-1]) + steps * scale
        mixed = cross + prices[:, None, None] * tilt
        return _levels_of(
            form.corner + mixed.transpose(0, 2, 1) @ (mixed / (prices[:, None] - eigenvalues)[:, :, None]), prices
        )

    # Good multipliers leave nothing to gain: c near 0 is tried, too.
    near_zero = -float(eigenvalues[-1]) / scale
    steps = np.sort([*_STEPS, *(near_zero * _AROUND if near_zero > 0.0 else [])])
    found = levels_at(steps)
    best = found[_least(found)]
    for _ in range(_ZOOMS):  # a + b is convex in c
        k = _least(found)
        steps = np.geomspace(steps[max(k - 1, 0)], steps[min(k + 1, len(steps) - 1)], _BETWEEN)
        found = levels_at(steps)
        best = min(best, found[_least(found)], key=lambda levels: levels.total)
    return best, float(eigenvalues[-1])


def _best_of_many(form: _Form) -> Levels | None:
    """Good levels without eigenvectors; ``None`` where none are found."""
    from scipy.linalg import solve_triangular

    space = _krylov_basis(form)
    if space is None:
        return None
    guess, largest = _best_of(form.within(space))
    found = []
    for distance in _BESIDE:
        price = largest + distance * (guess.price - largest)
        shifted = -form.coupling
        shifted[np.diag_indices(len(shifted))] += price
        try:
            factor = np.linalg.cholesky(shifted)
        except np.linalg.LinAlgError:  # the space has not seen the largest eigenvalue
            continue
        solved = solve_triangular(factor, form.cross + price * form.tilt, lower=True)
        found += _levels_of((form.corner + solved.T @ solved)[None], np.array([price]))
    return min(found, key=lambda levels: levels.total, default=None)


def _krylov_basis(form: _Form) -> FloatArray | None:
    """Orthonormal, shape (n, m): what powers of the coupling make of both sides' blocks, and of its top eigenvector."""
    from scipy.sparse import csr_array
    from scipy.sparse.linalg import ArpackError, eigsh

    coupling = csr_array(form.coupling)
    number = len(form.coupling)
    try:
        top = eigsh(coupling, k=1, which="LA", v0=np.ones(number), tol=1e-4)[1]
    except ArpackError:
        return None
    block = np.linalg.qr(np.concatenate([top, form.cross, form.tilt[:, 1:]], axis=1))[0]
    basis = block
    while basis.shape[1] < min(_DEPTH * block.shape[1], number // 2):
        block = coupling @ block
        for _ in range(2):  # once leaves rounding
            block -= basis @ (basis.T @ block)
        block = np.linalg.qr(block)[0]
        basis = np.concatenate([basis, block], axis=1)
    return basis


def _least(levels: list[Levels]) -> int:
    return int(np.argmin([each.total for each in levels]))


def _levels_of(schurs: FloatArray, prices: FloatArray) -> list[Levels]:
    r"""Least a + b with :math:`\operatorname{diag}(a, bI) \succeq T`, for each T, shape (m, 1 + r, 1 + r)."""
    curvatures, rests = secular_roots(schurs[:, 1:, 1:], 2.0 * schurs[:, 0, 1:])
    constants = schurs[:, 0, 0] + rests
    return [
        Levels(constant=float(constant), curvature=float(curvature), price=float(price))
        for constant, curvature, price in zip(constants, curvatures, prices, strict=True)
    ]
