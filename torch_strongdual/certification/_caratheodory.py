"""Fewer atoms for the same sum: elimination along the null space of the atoms, at no higher cost."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["reduced_magnitudes"]


def reduced_magnitudes(
    atoms: Tensor,  # shape: (num_entries, num_atoms)
    costs: Tensor,  # shape: (num_atoms,)
) -> Tensor:  # shape: (num_atoms,)
    r"""Non-negative magnitudes t with ``atoms @ t = atoms.sum(1)`` and ``costs @ t <= costs.sum()``, mostly zero.

    The atoms with :math:`t > 0` are linearly independent, so there are at most ``num_entries`` of them. A null vector of the
    atoms moves the magnitudes without moving the sum; of the two directions the one that does not raise the cost has a
    negative entry (costs are positive), so that some magnitude reaches zero. The null vectors left for the others come by
    one Householder reflection of an orthonormal basis, which keeps it orthonormal.

    Args:
        atoms: Float64, finite.
        costs: Positive, but where an atom is zero.
    """
    lengths = torch.linalg.vector_norm(atoms, dim=0)
    alive = lengths > 0.0
    magnitudes = torch.zeros_like(lengths)
    if not bool(alive.any()):
        return magnitudes
    unit_atoms = atoms[:, alive] / lengths[alive]
    prices = costs[alive] / lengths[alive]
    amounts = _eliminated(unit_atoms, lengths[alive].clone(), prices)
    amounts = _polished(unit_atoms, unit_atoms @ lengths[alive], amounts)
    spent, allowed = float(prices @ amounts), float(prices @ lengths[alive])
    if spent > allowed:  # by rounding: take it off all, which changes the sum by no more
        amounts = amounts * (allowed / spent)
    magnitudes[alive] = amounts / lengths[alive]
    return magnitudes


def _eliminated(unit_atoms: Tensor, amounts: Tensor, prices: Tensor) -> Tensor:
    """Move along null vectors until none is left among the atoms in use."""
    basis = _null_basis(unit_atoms)  # (num_atoms, num_null_vectors), orthonormal columns
    while basis.shape[1]:
        direction = _direction(basis, prices, amounts)
        shrinking = direction < 0.0
        ratios = torch.where(shrinking, amounts / torch.where(shrinking, -direction, 1.0), torch.inf)
        first = int(ratios.argmin())
        amounts = (amounts + float(ratios[first]) * direction).clamp(min=0.0)
        amounts[first] = 0.0
        basis = _without(basis, first)
    return amounts


def _null_basis(unit_atoms: Tensor) -> Tensor:
    num_entries, num_atoms = unit_atoms.shape
    if num_entries > num_atoms:  # the same null space from a square matrix
        unit_atoms = torch.linalg.qr(unit_atoms, mode="r").R
    _, values, right = torch.linalg.svd(unit_atoms, full_matrices=True)
    tolerance = max(num_entries, num_atoms) * torch.finfo(unit_atoms.dtype).eps * float(values[0])
    basis: Tensor = right[int((values > tolerance).sum()) :].T.contiguous()
    return basis


def _direction(basis: Tensor, prices: Tensor, amounts: Tensor) -> Tensor:
    """The null vector that saves most; where the cost is the same along all, the one that shrinks the smallest amount."""
    saving = basis @ (basis.T @ -prices)
    if float(torch.linalg.vector_norm(saving)) > 1e-9 * float(torch.linalg.vector_norm(prices)):
        return saving
    usable = torch.linalg.vector_norm(basis, dim=1) > 1e-6
    smallest = int(torch.where(usable, amounts, torch.inf).argmin())
    direction = -(basis @ basis[smallest])
    return direction if float(prices @ direction) <= 0.0 else -direction


def _without(basis: Tensor, index: int) -> Tensor:
    """Orthonormal basis of the vectors in the span of ``basis`` whose entry ``index`` is zero: one dimension less."""
    row = basis[index]
    pivot = int(row.abs().argmax())
    mirror = row.clone()
    mirror[pivot] += torch.copysign(torch.linalg.vector_norm(row), row[pivot])
    square = float(mirror @ mirror)
    if square > 0.0:
        basis = basis - (2.0 / square) * torch.outer(basis @ mirror, mirror)
    basis = torch.cat([basis[:, :pivot], basis[:, pivot + 1 :]], dim=1)
    basis[index] = 0.0
    return basis


def _polished(unit_atoms: Tensor, total: Tensor, amounts: Tensor) -> Tensor:
    """Take back, by least squares, what the steps have added up in rounding errors; skipped where a sign would change."""
    used = amounts > 0.0
    if not bool(used.any()):
        return amounts
    support = unit_atoms[:, used]
    missing = total - support @ amounts[used]
    correction = torch.linalg.lstsq(support, missing[:, None], driver="gelsd").solution[:, 0]
    improved = amounts[used] + correction
    left = torch.linalg.vector_norm(total - support @ improved)
    if bool((improved > 0.0).all()) and float(left) < float(torch.linalg.vector_norm(missing)):
        amounts = amounts.clone()
        amounts[used] = improved
    return amounts
