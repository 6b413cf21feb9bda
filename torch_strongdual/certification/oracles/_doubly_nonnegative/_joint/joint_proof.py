"""Bounds on the dual norm from multipliers that are there already, part of the sphere by part."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from fractions import Fraction
from typing import final

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._doubly_nonnegative._joint.abstract_joint_ascent import JointLeaf
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.leaf_polish import LeafPolish, PolishedLeaf
from torch_strongdual.certification.oracles._doubly_nonnegative.scaled_lift import ScaledLift
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.abstract_two_layer_oracle import AbstractTwoLayerOracle
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem

__all__ = ["JointProof"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@final
class JointProof(AbstractTwoLayerOracle):
    """The largest of the safe bounds on parts that cover the sphere, for either sign of one output, or for several.

    Leaves and weights need not fit the dual point, nor be accurate: whatever they are, the result is a bound, and tight if
    they fit. Those that fit least are improved for as long as the request allows; see :class:`LeafPolish`.

    Args:
        leaves: Parts of the sphere for each sign, with multipliers.
        weights: Of the kept samples, those that the multipliers are for: sign and size matter, shape (k,) or (k, c).
        kept: Which samples the leaves know, shape (n,).
    """

    def __init__(self, leaves: Sequence[JointLeaf], weights: FloatArray, kept: BoolArray) -> None:
        self._leaves, self._weights, self._kept = leaves, weights, kept
        self._known: tuple[bytes, ScaledLift, LeafPolish] | None = None  # of the problem bounded last
        self._seconds = 0.0  # that the proof of one part takes

    def needs_ascent(self, problem: SphereProblem) -> bool:
        """Multipliers prove; they attain nothing."""
        return False

    def maximise(self, problem: SphereProblem, request: BoundRequest, starts: FloatArray) -> SphereBound:
        """Bound the maximum; see :meth:`AbstractTwoLayerOracle.maximise`.

        Where the leaves have moments, time that is left is for better multipliers. Asked about the same problem again, this
        goes on where it stopped.
        """
        key = problem.fingerprint()
        if self._known is None or self._known[0] != key:
            begin = time.perf_counter()
            self._known = key, *self._polish(problem)
            self._seconds = (time.perf_counter() - begin) / max(len(self._leaves), 1)
        _, scaled, polish = self._known
        asked = scaled.request(request)
        polish.run(max(asked.floor, asked.target or 0.0), lambda: request.deadline.remaining <= self._seconds)
        stats: dict[str, float | str] = {"oracle": "DoublyNonnegativeRelaxation", "nodes": float(len(self._leaves))}
        points = starts[:0] if len(starts) else np.zeros((0, problem.rank))
        return SphereBound(upper=scaled.upper(polish.upper), lower=0.0, points=points, stats=stats)

    def _polish(self, problem: SphereProblem) -> tuple[ScaledLift, LeafPolish]:
        """The parts of both signs with what is proven of them, and their units."""
        # Principal coordinates of a single output may have its other sign.
        if self._weights.ndim == 2:
            return self._polish_outputs(problem)
        along = 1.0 if float(problem.duals[self._kept, 0] @ self._weights) >= 0.0 else -1.0
        size = float(np.linalg.norm(self._weights))
        found: list[PolishedLeaf] = []
        for sign in (1.0, -1.0):
            leaves = [leaf for leaf in self._leaves if leaf.sign == sign]
            scaled = ScaledLift.of(problem.half(along * sign), self._kept)
            lift = scaled.lift
            if lift.num_rows != len(self._weights) or not 0.0 < size < math.inf or not _is_partition(leaves):
                return scaled, LeafPolish([PolishedLeaf(lift, scaled.crude_upper)])
            factor = float(np.linalg.norm(lift.weights)) / size
            found += [leaf.scaled(dataclasses.replace(lift, signs=leaf.signs), factor) for leaf in leaves]
        return scaled, LeafPolish(found)  # both signs have the same units: sizes decide these

    def _polish_outputs(self, problem: SphereProblem) -> tuple[ScaledLift, LeafPolish]:
        """The same for all outputs at once, whose principal coordinates do not matter to multipliers of products."""
        weights, size = self._weights, float(np.linalg.norm(self._weights))
        along = problem.duals[self._kept] * np.linalg.norm(problem.rows[self._kept], axis=1)[:, None]
        fits = len(along) == len(weights) and 0.0 < size < math.inf and not problem.linear.any()
        if not fits or not _is_partition(self._leaves):
            scaled = ScaledLift.of(problem, self._kept)
            return scaled, LeafPolish([PolishedLeaf(scaled.lift, scaled.crude_upper)])
        # The axes of the leaves in coordinates of the problem: whatever they are, all leaves speak of the same directions.
        directions = np.linalg.lstsq(weights, along, rcond=None)[0]
        lengths = np.linalg.norm(directions, axis=1, keepdims=True)
        directions = np.divide(directions, lengths, out=np.zeros_like(directions), where=lengths > 0.0)
        scaled = ScaledLift.of(problem, self._kept, directions)
        lift = scaled.lift
        assert lift.bilinear is not None
        factor = float(np.linalg.norm(lift.bilinear)) / size
        found = [leaf.scaled(dataclasses.replace(lift, signs=leaf.signs), factor) for leaf in self._leaves]
        return scaled, LeafPolish(found)


def _is_partition(leaves: Sequence[JointLeaf]) -> bool:
    """Whether the leaves cover the sphere: no two overlap, and the shares of a cube of signs add up to one."""
    signs = np.array([leaf.signs for leaf in leaves], dtype=np.int64)
    if not len(leaves):
        return False
    overlapping = sum(not (signs[k] * signs[:k] < 0).any(axis=1).all() for k in range(len(leaves)))
    shares = sum(Fraction(1, 2 ** int(np.count_nonzero(row))) for row in signs)
    return not overlapping and shares == 1
