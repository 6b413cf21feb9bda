"""The doubly nonnegative relaxation of several outputs at once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.certification.oracles.test_joint_proof import random_leaves
from tests.references.doubly_nonnegative_sdp import doubly_nonnegative_norm
from tests.references.enumeration import exact_dual_norm
from tests.references.planar import exact_planar_dual_norm
from torch_strongdual.certification import Deadline
from torch_strongdual.certification.oracles import BoundRequest, DoublyNonnegativeRelaxation
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.abstract_joint_ascent import JointLeaf
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.joint_proof import JointProof
from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift
from torch_strongdual.certification.oracles._doubly_nonnegative.product_multipliers import ProductMultipliers
from torch_strongdual.certification.oracles._doubly_nonnegative.safe_bound import safe_upper, safe_upper_of_products
from torch_strongdual.nn import BranchActivation, BranchSpec

NUM_ROWS, NUM_OUTPUTS = 6, 3


def random_multipliers(generator: np.random.Generator, lift: Lift, size: float) -> ProductMultipliers:
    """Multipliers of pairs, of any sign, that fit nothing."""
    first, second = np.triu_indices(2 * lift.num_rows, 1)
    chosen = (second - first != lift.num_rows) & (generator.random(len(first)) < 0.3)
    return ProductMultipliers(
        first=first[chosen],
        second=second[chosen],
        products=size * generator.standard_normal(int(chosen.sum())),
        crossed=size * generator.standard_normal(lift.num_rows),
        cones=np.zeros((2 * lift.num_rows, 1 + lift.rank)),
    )


def upper_of(oracle: DoublyNonnegativeRelaxation | JointProof, rows: np.ndarray, duals: np.ndarray, **request: float) -> float:
    spec = BranchSpec(widths=(rows.shape[1], 1, duals.shape[1]), activations=(BranchActivation(),))
    state = oracle.init(spec, torch.from_numpy(rows))
    asked = BoundRequest(**{"rtol": 1e-3, "deadline": Deadline(20.0), **request})  # type: ignore[arg-type]
    return oracle.bound(state, torch.from_numpy(duals), asked).upper


class TestSafeBound:
    @pytest.mark.parametrize("size", [0.0, 1e-3, 0.1, 10.0])
    def test_any_multipliers_give_a_bound_whatever_signs_are_decided(self, size: float) -> None:
        generator = np.random.default_rng(int(1000 * size))
        for _ in range(4):
            rows, duals = generator.standard_normal((NUM_ROWS, 2)), generator.standard_normal((NUM_ROWS, NUM_OUTPUTS))
            rows /= np.linalg.norm(rows, axis=1)[:, None]
            lift = Lift.of_outputs(rows, duals, generator.standard_normal((2, NUM_OUTPUTS)))
            truth = 0.5 * exact_planar_dual_norm(rows, duals)
            whole = random_multipliers(generator, lift, size)
            assert safe_upper_of_products(lift, whole) >= truth * (1 - 1e-12)
            assert safe_upper(lift, whole.matrix(lift)) >= truth * (1 - 1e-12)
            on, off = (lift.with_sign(NUM_ROWS + 1, sign) for sign in (1, -1))  # the sign of v along a direction
            halves = [safe_upper_of_products(half, random_multipliers(generator, half, size)) for half in (on, off)]
            assert max(halves) >= truth * (1 - 1e-12)

    def test_a_maximum_that_is_attained_exactly_is_never_undercut(self) -> None:
        """Orthonormal rows and duals of one sign: the maximum is ``||a|| ||b||`` for duals ``a b'``."""
        for seed in range(20):
            generator = np.random.default_rng(seed)
            weights, outputs = np.abs(generator.standard_normal(4)), generator.standard_normal(2)
            duals = weights[:, None] * outputs
            lift = Lift.of_outputs(np.eye(4), duals, np.eye(2))
            truth = 0.5 * float(np.linalg.norm(weights)) * float(np.linalg.norm(outputs))
            price = np.concatenate([np.full(4, -2.0 * truth), np.zeros(2)])  # of z_i s_i: the one that is needed
            multipliers = dataclasses.replace(ProductMultipliers.zero(lift), crossed=price)
            upper = safe_upper_of_products(lift, multipliers)
            assert truth * (1 - 4e-16) <= upper <= truth * (1 + 1e-9)


class TestOracle:
    @pytest.mark.parametrize("seed", range(3))
    def test_one_relaxation_is_as_tight_as_the_semidefinite_program(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        rows, duals = generator.standard_normal((10, 4)), generator.standard_normal((10, NUM_OUTPUTS))
        best = doubly_nonnegative_norm(rows, duals)
        upper = upper_of(DoublyNonnegativeRelaxation(max_nodes=1), rows, duals)
        assert best * (1 - 1e-6) <= upper <= best * (1 + 5e-3)

    @pytest.mark.parametrize("seed", range(6))
    def test_splits_reach_the_maximum_and_never_undercut_it(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        rows, duals = generator.standard_normal((8, 2)), generator.standard_normal((8, NUM_OUTPUTS))
        truth = exact_planar_dual_norm(rows, duals)
        assert truth * (1 - 1e-9) <= upper_of(DoublyNonnegativeRelaxation(), rows, duals) <= truth * (1 + 5e-3)

    def test_outputs_that_are_multiples_of_one(self) -> None:
        generator = np.random.default_rng(3)
        rows, duals, outputs = generator.standard_normal((7, 3)), generator.standard_normal(7), np.array([3.0, -4.0])
        truth = 5.0 * exact_dual_norm(rows, duals)
        upper = upper_of(DoublyNonnegativeRelaxation(), rows, duals[:, None] * outputs)
        assert truth * (1 - 1e-9) <= upper <= truth * (1 + 5e-3)


class TestJointProof:
    @pytest.mark.parametrize("scale", [1e-100, 1.0, 1e100])
    def test_leaves_that_fit_nothing(self, scale: float) -> None:
        generator = np.random.default_rng(1)
        for _ in range(4):
            rows, duals = generator.standard_normal((NUM_ROWS, 2)), generator.standard_normal((NUM_ROWS, NUM_OUTPUTS))
            truth = exact_planar_dual_norm(rows, duals)
            lift = Lift.of_outputs(rows, duals, np.eye(NUM_OUTPUTS))
            signs = [lift.with_sign(NUM_ROWS, 1), lift.with_sign(NUM_ROWS, -1).with_sign(2, 1)]
            signs.append(lift.with_sign(NUM_ROWS, -1).with_sign(2, -1))
            leaves = [
                JointLeaf(sign=1.0, signs=part.signs, multipliers=random_multipliers(generator, part, 0.1)) for part in signs
            ]
            weights = generator.standard_normal((NUM_ROWS, NUM_OUTPUTS))  # of another point
            proof = JointProof(leaves, weights, np.ones(NUM_ROWS, dtype=bool))
            assert truth * (1 - 1e-9) <= upper_of(proof, rows, scale * duals) / scale
            hole = JointProof(leaves[1:], weights, np.ones(NUM_ROWS, dtype=bool))
            assert truth * (1 - 1e-9) <= upper_of(hole, rows, scale * duals) / scale

    def test_leaves_of_one_output_prove_nothing_of_several(self) -> None:
        generator = np.random.default_rng(2)
        rows, duals = generator.standard_normal((NUM_ROWS, 3)), generator.standard_normal((NUM_ROWS, 1))
        proof = JointProof(random_leaves(generator, size=0.1), np.zeros((5, 2)), np.ones(NUM_ROWS, dtype=bool))
        assert upper_of(proof, rows, duals) >= exact_dual_norm(rows, duals[:, 0]) * (1 - 1e-9)
