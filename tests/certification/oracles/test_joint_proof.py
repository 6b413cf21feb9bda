from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from tests.references.enumeration import exact_dual_norm
from torch_strongdual.certification import Deadline
from torch_strongdual.certification.oracles import BoundRequest
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.abstract_joint_ascent import JointLeaf
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.joint_proof import JointProof
from torch_strongdual.nn import BranchActivation, BranchSpec

NUM_ROWS, RANK = 6, 3


def proven(
    proof: JointProof,
    rows: np.ndarray,
    duals: np.ndarray,
    *,
    slope: float = 0.0,
    floor: float = 0.0,
    seconds: float = math.inf,
) -> float:
    spec = BranchSpec(widths=(rows.shape[1], 1, 1), activations=(BranchActivation(negative_slope=slope),))
    state = proof.init(spec, torch.from_numpy(rows))
    request = BoundRequest(floor=floor, deadline=Deadline(seconds))
    return proof.bound(state, torch.from_numpy(duals)[:, None], request).upper


def random_leaves(generator: np.random.Generator, *, size: float) -> list[JointLeaf]:
    """A random tree of signs for each sign of the output, with multipliers that fit nothing."""
    leaves = []
    for sign in (1.0, -1.0):
        tree = [np.zeros(NUM_ROWS, dtype=np.int8)]
        for _ in range(int(generator.integers(0, 5))):
            signs = tree.pop(int(generator.integers(len(tree))))
            if not (signs == 0).any():
                tree.append(signs)
                continue
            sample = generator.choice(np.flatnonzero(signs == 0))
            for value in (1, -1):
                child = signs.copy()
                child[sample] = value
                tree.append(child)
        length = 1 + RANK + 2 * NUM_ROWS
        multipliers = size * generator.standard_normal((len(tree), length, length))
        leaves += [JointLeaf(sign=sign, signs=signs, multipliers=s + s.T) for signs, s in zip(tree, multipliers, strict=True)]
    return leaves


class TestSoundness:
    @pytest.mark.parametrize("size", [0.0, 1e-3, 0.1, 10.0])
    @pytest.mark.parametrize("slope", [0.0, 0.3])
    def test_any_multipliers_on_any_partition_give_a_bound(self, size: float, slope: float) -> None:
        generator = np.random.default_rng(int(1000 * size))
        for _ in range(3):
            rows, duals = generator.standard_normal((NUM_ROWS, RANK)), generator.standard_normal(NUM_ROWS)
            rows *= 10.0 ** generator.uniform(-3, 3)
            truth = exact_dual_norm(rows, duals, slope=slope)
            weights = generator.choice([-1.0, 1.0]) * duals * np.linalg.norm(rows, axis=1)
            proof = JointProof(random_leaves(generator, size=size), weights, np.ones(NUM_ROWS, dtype=bool))
            upper = proven(proof, rows, duals, slope=slope)
            assert truth * (1 - 1e-9) <= upper < np.inf

    def test_parts_that_leave_a_hole_prove_nothing_of_it(self) -> None:
        """Where the maximum is in the part that is missing, its bound would be below the truth."""
        rows, duals = np.eye(RANK), np.array([1.0, 1.0, 1.0])
        length = 1 + RANK + 2 * RANK
        off = np.full(RANK, -1, dtype=np.int8)
        hole = [JointLeaf(sign=s, signs=off, multipliers=np.zeros((length, length))) for s in (1.0, -1.0)]
        assert proven(JointProof(hole, duals, np.ones(RANK, dtype=bool)), rows, duals) >= 3**0.5
        assert proven(JointProof([*hole, *hole], duals, np.ones(RANK, dtype=bool)), rows, duals) >= 3**0.5
        assert proven(JointProof([], duals, np.ones(RANK, dtype=bool)), rows, duals) >= 3**0.5

    def test_samples_left_out_count_with_their_norm(self) -> None:
        generator = np.random.default_rng(5)
        rows, duals = generator.standard_normal((NUM_ROWS + 2, RANK)), generator.standard_normal(NUM_ROWS + 2)
        kept = np.arange(NUM_ROWS + 2) < NUM_ROWS
        weights = (duals * np.linalg.norm(rows, axis=1))[kept]
        upper = proven(JointProof(random_leaves(generator, size=1e-3), weights, kept), rows, duals)
        assert exact_dual_norm(rows, duals) * (1 - 1e-9) <= upper


class TestBetterMultipliers:
    @pytest.mark.parametrize("slope", [0.0, 0.3])
    def test_tighter_with_time_and_never_below_the_truth(self, slope: float) -> None:
        """From multipliers of zero and moments that fit nothing; the maximum itself is where it ends, splits included."""
        generator = np.random.default_rng(7)
        for _ in range(3):
            rows, duals = generator.standard_normal((NUM_ROWS, RANK)), generator.standard_normal(NUM_ROWS)
            truth = exact_dual_norm(rows, duals, slope=slope)
            leaves = []
            for leaf in random_leaves(generator, size=0.0):
                factor = generator.standard_normal((1 + RANK + 2 * NUM_ROWS, 4))
                leaves.append(dataclasses.replace(leaf, moments=torch.from_numpy(factor @ factor.T)))
            proof = JointProof(leaves, duals * np.linalg.norm(rows, axis=1), np.ones(NUM_ROWS, dtype=bool))
            at_once = proven(proof, rows, duals, slope=slope, seconds=0.0)
            later = proven(proof, rows, duals, slope=slope, seconds=20.0)
            assert at_once > 1.05 * truth
            assert truth * (1 - 1e-9) <= later <= 1.01 * truth

    def test_not_tighter_than_asked(self) -> None:
        generator = np.random.default_rng(8)
        rows, duals = generator.standard_normal((NUM_ROWS, RANK)), generator.standard_normal(NUM_ROWS)
        length = 1 + RANK + 2 * NUM_ROWS
        nothing, moments = np.zeros((length, length)), torch.eye(length, dtype=torch.float64)
        signs = np.zeros(NUM_ROWS, dtype=np.int8)
        leaves = [JointLeaf(sign=s, signs=signs, multipliers=nothing, moments=moments) for s in (1.0, -1.0)]
        proof = JointProof(leaves, duals * np.linalg.norm(rows, axis=1), np.ones(NUM_ROWS, dtype=bool))
        enough = 10.0 * exact_dual_norm(rows, duals)
        assert proven(proof, rows, duals, floor=enough) <= enough
        before = proven(proof, rows, duals, seconds=0.0)
        assert proven(proof, rows, duals, floor=1.05 * before) == before
