"""Maximisers of leaves as linear minorants of the largest leaf maximum."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._depth.slope_tree import SlopeTree

__all__ = ["Atom", "SlopeCuts"]

FloatArray = NDArray[np.float64]

_MOST_IDLE = 3  # solutions without weight until a cut is dropped
_FEW = 60  # cuts that are kept anyway
_ACTIVE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Atom:
    """A unit behind a leaf.

    Args:
        leaf: Its number.
        point: Unit vector in reduced coordinates.
        weight: In the mixture that the last program ended with.
    """

    leaf: int
    point: FloatArray
    weight: float = 0.0


@dataclass(slots=True, kw_only=True, eq=False)
class SlopeCuts:
    """Linear minorants of the largest leaf maximum, as a function of the inner nodes' functionals and the flows.

    They are values at points of the sphere, and so they hold for any duals, slopes and flows.
    """

    tree: SlopeTree
    rows: FloatArray
    leaves: list[int] = field(default_factory=list)
    points: list[FloatArray] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    idle: list[int] = field(default_factory=list)

    def add(self, atoms: Iterable[Atom]) -> None:
        """One cut each."""
        for atom in atoms:
            self.leaves.append(atom.leaf)
            self.points.append(atom.point)
            self.weights.append(0.0)
            self.idle.append(0)

    def update(self, weights: FloatArray) -> None:
        """Remember what the solution gives to each cut, and drop those that were of no use for some time."""
        least = _ACTIVE * float(np.max(weights, initial=0.0))
        self.weights = [float(weight) for weight in weights]
        self.idle = [0 if weight > least else age + 1 for weight, age in zip(weights, self.idle, strict=True)]
        oldest = sorted(range(len(self.idle)), key=lambda index: -self.idle[index])[: max(0, len(self.idle) - _FEW)]
        dropped = {index for index in oldest if self.idle[index] >= _MOST_IDLE}
        keep = [index for index in range(len(self.idle)) if index not in dropped]
        self.leaves = [self.leaves[index] for index in keep]
        self.points = [self.points[index] for index in keep]
        self.weights = [self.weights[index] for index in keep]
        self.idle = [self.idle[index] for index in keep]

    @property
    def mixture(self) -> list[Atom]:
        """The cuts with weight."""
        least = _ACTIVE * max(self.weights, default=0.0)
        found = zip(self.leaves, self.points, self.weights, strict=True)
        return [Atom(leaf=leaf, point=point, weight=weight) for leaf, point, weight in found if weight > least]

    def matrix(self) -> FloatArray:  # shape: (num_cuts, num_inner * 2 * n + p)
        """Values of the cuts are ``matrix @ y``, y the stacked ``(above, below)`` of all inner nodes, then the flows."""
        num_rows = len(self.rows)
        hidden = np.array(self.points) @ self.rows.T
        tree = self.tree
        signs = [tree.leaf_sign(leaf) for leaf in self.leaves]
        groups = {sign: tree.groups.values(hidden, sign, tree.bend) for sign in (1.0, -1.0)}
        above, below = np.maximum(hidden, 0.0), np.maximum(-hidden, 0.0)
        size = tree.num_inner * 2 * num_rows
        matrix = np.zeros((len(self.leaves), size + tree.groups.number))
        for index, leaf in enumerate(self.leaves):
            node = tree.num_inner + leaf
            matrix[index, size:] = groups[signs[index]][index]
            if leaf > tree.num_inner:  # groups alone
                continue
            parent, is_minus = divmod(node - 1, 2)
            slope = tree.slope_at(parent)
            # plus: (alpha, a beta); minus: (beta, a alpha)
            halves = (slope * below[index], above[index]) if is_minus else (above[index], slope * below[index])
            begin = parent * 2 * num_rows
            matrix[index, begin : begin + 2 * num_rows] = np.concatenate(halves)
        return matrix
