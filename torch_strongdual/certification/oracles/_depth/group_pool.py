"""Which groups of samples are part of the program: those that lower its level."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._depth.sample_groups import SampleGroups
from torch_strongdual.certification.oracles._depth.slope_cuts import Atom
from torch_strongdual.certification.oracles._depth.slope_program import SlopeSolution
from torch_strongdual.certification.oracles._depth.slope_tree import SlopeTree

__all__ = ["GroupPool"]

FloatArray = NDArray[np.float64]

_LEAST_GAIN = 1e-5
_FEW, _SHARE = 30, 8  # of the samples, at least: groups that join at a time
_MOST_PRICED = 2_000_000
_MOST_IDLE = 3  # solutions without flow until a group is left out


class GroupPool:
    """Groups that are part of the program, and others that may become so.

    Args:
        groups: To begin with.
        flows: What they carried before, shape (p,): if any did, the others wait until they are worth it.
    """

    def __init__(self, groups: SampleGroups, flows: FloatArray | None = None) -> None:
        self._all = groups
        self._idle: NDArray[np.int64] = np.zeros(groups.number, dtype=np.int64)
        if flows is not None and flows.any():
            self._idle[flows <= 0.0] = _MOST_IDLE

    @property
    def active(self) -> SampleGroups:
        """Those that are part of the program."""
        return self._all.subset(self._idle < _MOST_IDLE)

    def exchange(self, tree: SlopeTree, rows: FloatArray, mixture: list[Atom], solution: SlopeSolution) -> int:
        """Leave out what was of no use for some time, take in what would lower the level; return the number of those."""
        active = np.flatnonzero(self._idle < _MOST_IDLE)
        flows = solution.point[len(solution.point) - len(active) :]
        self._idle[active] = np.where(flows > 0.0, 0, self._idle[active] + 1)
        added = _cheaper_pairs(tree, rows, mixture, solution.prices)
        again = np.flatnonzero(self._idle >= _MOST_IDLE)
        gains = _gains(tree, rows, self._all.subset(self._idle >= _MOST_IDLE), mixture, solution.prices)
        best = np.argsort(-gains, kind="stable")[: _most_new(tree)]
        again = again[best[gains[best] > 0.0]]
        self._idle[again] = 0
        self._all = self._all.joined(added)
        self._idle = np.concatenate([self._idle, np.zeros(added.number, dtype=np.int64)])
        return len(again) + added.number


def _gains(
    tree: SlopeTree, rows: FloatArray, groups: SampleGroups, mixture: list[Atom], prices: FloatArray
) -> FloatArray:  # shape: (p,)
    """By how much all the flow there is lowers the level, to first order, where that is worth it; 0 elsewhere."""
    gains = groups.gains(prices)
    for sign in (1.0, -1.0):
        atoms = [atom for atom in mixture if tree.leaf_sign(atom.leaf) == sign]
        if atoms:
            hidden = np.array([atom.point for atom in atoms]) @ rows.T
            gains -= np.array([atom.weight for atom in atoms]) @ groups.values(hidden, sign, tree.bend)
    level = float(np.abs(prices) @ np.abs(tree.duals))
    most = np.abs(tree.duals)[groups.centres]
    return np.where(gains * most > _LEAST_GAIN * level, gains * most, 0.0)


def _most_new(tree: SlopeTree) -> int:
    """How many groups may join at a time: the cuts of a young program value them badly."""
    return max(_FEW, len(tree.duals) // _SHARE)


def _cheaper_pairs(tree: SlopeTree, rows: FloatArray, mixture: list[Atom], prices: FloatArray) -> SampleGroups:
    """Pairs whose first unit of flow would lower the level of the program most, at most one for each sample."""
    norms = np.linalg.norm(rows, axis=1)
    plus, minus = np.flatnonzero((tree.duals > 0) & (norms > 0)), np.flatnonzero((tree.duals < 0) & (norms > 0))
    if not mixture or not len(plus) or not len(minus) or len(plus) * len(minus) > _MOST_PRICED:
        return SampleGroups.none(len(rows))
    points = np.array([atom.weight * atom.point for atom in mixture])
    signs = np.array([tree.leaf_sign(atom.leaf) for atom in mixture])
    hidden = signs[:, None] * (points @ rows.T)
    ratios = norms[plus, None] / norms[None, minus]
    gain = prices[plus, None] - ratios * prices[None, minus]
    for row in hidden:
        gain -= np.maximum(row[plus, None] - ratios * row[None, minus], 0.0)
    level = float(np.abs(prices) @ np.abs(tree.duals))
    gain[~(np.isfinite(ratios) & (ratios > 0))] = -np.inf
    chosen = np.zeros(gain.shape, dtype=bool)
    chosen[np.arange(len(plus)), gain.argmax(axis=1)] = True
    chosen[gain.argmax(axis=0), np.arange(len(minus))] = True
    most = np.minimum(tree.duals[plus, None], -tree.duals[None, minus] / ratios)
    i, j = np.nonzero(chosen & (gain * most > _LEAST_GAIN * level))
    best = np.argsort(-(gain * most)[i, j], kind="stable")[: _most_new(tree)]
    i, j = i[best], j[best]
    return SampleGroups.of_pairs(plus[i], minus[j], ratios[i, j], len(rows))
