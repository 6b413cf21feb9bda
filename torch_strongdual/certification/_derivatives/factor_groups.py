"""Branches of equal activation pattern: together they are one matrix, which any of its factorisations represents."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from torch_strongdual.certification._derivatives.factor_point import FactorPoint
from torch_strongdual.certification._derivatives.kinked_data import KinkedData

__all__ = ["compressed", "groups_of_equal_pattern"]

_NEGLIGIBLE = 1e-12
_TOUCHING = 1e-9
_ANGLES = 181


def groups_of_equal_pattern(data: KinkedData, point: FactorPoint) -> list[list[int]]:
    """Numbers of the branches with the same slopes at all samples, held on the same kinks.

    Args:
        data: The samples.
        point: The branches.
    """
    keys = torch.cat([data.gains(point.sides, point.gates), (point.sides == 0.0).to(torch.float64)], dim=1)
    groups: dict[bytes, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key.numpy().tobytes(), []).append(index)
    return list(groups.values())


def compressed(data: KinkedData, point: FactorPoint) -> FactorPoint:
    """With as few branches for each pattern as its matrix has rank, by its singular vectors, where these keep to the pattern.

    Outputs stay, the penalty does not grow: it becomes the sum of the singular values. Two branches are turned away from the
    kinks; more than two keep to the pattern only by luck, and stay as they are if not.

    Args:
        data: The samples.
        point: The branches.
    """
    parts = [_factorised(data, point.kept(torch.tensor(group))) for group in groups_of_equal_pattern(data, point)]
    return dataclasses.replace(
        point,
        first=torch.cat([part.first for part in parts]),
        last=torch.cat([part.last for part in parts]),
        sides=torch.cat([part.sides for part in parts]),
        gates=torch.cat([part.gates for part in parts]),
    )


def _factorised(data: KinkedData, group: FactorPoint) -> FactorPoint:
    """The branches of one pattern."""
    left, sizes, right = torch.linalg.svd(group.first.T @ group.last, full_matrices=False)
    used = sizes > _NEGLIGIBLE * sizes[0]
    number = int(used.sum())
    if number == group.number and _margins(data, group.first, group.sides[0]).min() > _TOUCHING:
        return group
    scale = sizes[used].sqrt()[:, None]
    turns = _turns(number)
    firsts, lasts = turns @ (scale * left[:, used].T), turns @ (scale * right[used])
    flips = _flips(data, firsts, group.sides[0])
    margins = _margins(data, firsts * flips, group.sides[0]).amin(dim=1)
    best = int(margins.argmax())
    if margins[best] < 0.0:
        return group
    which = torch.zeros(number, dtype=torch.int64)
    return dataclasses.replace(group.kept(which), first=(firsts * flips)[best], last=(lasts * flips)[best])


def _turns(number: int) -> Tensor:  # shape: (candidates, number, number)
    """Orthogonal matrices to mix the singular vectors by: a quarter turn in steps for two, none for other numbers."""
    if number != 2:
        return torch.eye(number, dtype=torch.float64)[None]
    angles = torch.linspace(0.0, 0.5 * math.pi, _ANGLES, dtype=torch.float64)
    return torch.stack([angles.cos(), angles.sin(), -angles.sin(), angles.cos()], dim=1).reshape(-1, 2, 2)


def _flips(data: KinkedData, firsts: Tensor, sides: Tensor) -> Tensor:  # shape: (..., number, 1)
    """1, or -1 for first layers that are mostly on the wrong sides."""
    agreement = ((firsts @ data.normals.T) * sides).sum(dim=-1, keepdim=True)
    return torch.where(agreement < 0.0, -torch.ones_like(agreement), 1.0)


def _margins(data: KinkedData, firsts: Tensor, sides: Tensor) -> Tensor:  # shape: (..., number)
    """Least distance from a kink, relative, negative on the wrong side; kinks that hold do not count."""
    free = sides != 0.0
    if not free.any():
        return torch.ones(firsts.shape[:-1], dtype=torch.float64)
    heights = (firsts @ data.normals[free].T) * sides[free]
    margins: Tensor = heights.amin(dim=-1) / torch.linalg.vector_norm(firsts, dim=-1)
    return margins
