"""What the doubly nonnegative relaxation does otherwise with many samples, against the slow way of doing it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.certification.oracles.test_low_rank_ascent import random_multipliers
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles import BoundRequest
from torch_strongdual.certification.oracles._doubly_nonnegative import factor_penalty, levels
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.abstract_joint_ascent import RelaxedTraining
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.joint_low_rank import JointLowRank
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.joint_proof import JointProof
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.relaxed_losses import HuberRelaxedLoss
from torch_strongdual.certification.oracles._doubly_nonnegative.factor_penalty import FactorPenalty
from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift
from torch_strongdual.certification.oracles._doubly_nonnegative.low_rank_ascent import LowRankAscent
from torch_strongdual.certification.oracles._doubly_nonnegative.product_multipliers import ProductMultipliers
from torch_strongdual.certification.oracles._doubly_nonnegative.reduced_form import SparseForm
from torch_strongdual.nn import BranchActivation, BranchSpec

FloatArray = NDArray[np.float64]


def unit_rows(seed: int, number: int, rank: int) -> FloatArray:
    rows = np.random.default_rng(seed).standard_normal((number, rank))
    result: FloatArray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return result


def lift_of(seed: int, number: int, rank: int, *, share_decided: float = 0.0) -> Lift:
    generator = np.random.default_rng(seed + 1)
    weights = generator.standard_normal(number)
    lift = Lift.of(unit_rows(seed, number, rank), weights / np.linalg.norm(weights), np.zeros(rank))
    sides = np.sign(lift.rows @ generator.standard_normal(rank))  # a part of the sphere that is not empty
    for sample in np.flatnonzero(generator.random(number) < share_decided):
        lift = lift.with_sign(int(sample), int(sides[sample]))
    return lift


def settled_multipliers(lift: Lift, *, rounds: int) -> ProductMultipliers:
    ascent = LowRankAscent(lift)
    for _ in range(rounds):
        assert ascent.advance(lambda: False)
    return ascent.point.multipliers


class TestViolatedProducts:
    @pytest.mark.parametrize("block", [1, 7, 200, 10**6])
    @pytest.mark.parametrize(("number", "max_cuts"), [(3, 100), (20, 10_000), (20, 15)])
    def test_those_put_in_are_the_most_negative_ones(
        self, monkeypatch: pytest.MonkeyPatch, block: int, number: int, max_cuts: int
    ) -> None:
        monkeypatch.setattr(factor_penalty, "_BLOCK", block)
        lift = lift_of(number, number, 3)
        known = random_multipliers(lift, 1, size=1.0, share=0.2)
        known = ProductMultipliers(
            first=known.first, second=known.second, products=np.abs(known.products), crossed=known.crossed, cones=known.cones
        )
        products = np.random.default_rng(2).standard_normal((2 * number, 4)) + 0.3
        penalty = FactorPenalty(lift, known, 1e-9)  # hardly changes the multipliers
        value = penalty.evaluate(1.0, np.ones((3, 4)), products)
        found = penalty.updated(value, products, weight=1.0, max_cuts=max_cuts).multipliers

        taken = set(zip(known.first.tolist(), known.second.tolist(), strict=True)) | {(i, i + number) for i in range(number)}
        overlaps = products @ products.T
        open_pairs = [(i, j) for i in range(2 * number) for j in range(i + 1, 2 * number) if (i, j) not in taken]
        least = min(overlaps[pair] for pair in open_pairs)
        expected = sorted((overlaps[pair], pair) for pair in open_pairs if overlaps[pair] < 0.01 * least)[:max_cuts]
        added = set(zip(found.first.tolist(), found.second.tolist(), strict=True)) - taken
        assert least < 0.0
        assert added == {pair for _, pair in expected}


class TestLevelsWithoutEigenvectors:
    @pytest.mark.parametrize("share_decided", [0.0, 0.3])
    @pytest.mark.parametrize("rounds", [1, 12])
    def test_are_as_good_as_those_from_all_eigenvectors(
        self, monkeypatch: pytest.MonkeyPatch, share_decided: float, rounds: int
    ) -> None:
        lift = lift_of(5, 120, 4, share_decided=share_decided)
        reduced = SparseForm(lift, settled_multipliers(lift, rounds=rounds)).reduced()
        exact = levels.best_levels(lift, reduced)
        monkeypatch.setattr(levels, "_MANY", 1)
        found = levels.best_levels(lift, reduced)
        assert exact.total - 1e-9 <= found.total <= exact.total + 0.02  # in units of the weights' norm
        assert found.total != exact.total  # another way was taken

    def test_any_multipliers_give_levels_that_prove(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(levels, "_MANY", 1)
        for seed in range(10):
            lift = lift_of(seed, 30, 3)
            form = SparseForm(lift, random_multipliers(lift, seed, size=10.0 ** np.random.default_rng(seed).uniform(-3, 3)))
            found = levels.best_levels(lift, form.reduced())
            form.subtract(found.price)
            slack = -form.reduced()
            slack[0, 0] += found.constant
            slack[np.arange(1, 4), np.arange(1, 4)] += found.curvature
            eigenvalues = np.linalg.eigvalsh(slack)
            assert eigenvalues[0] >= -1e-9 * eigenvalues[-1]

    def test_where_the_largest_eigenvalue_is_not_found_there_is_the_slow_way(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lift = lift_of(5, 40, 3)
        reduced = SparseForm(lift, settled_multipliers(lift, rounds=2)).reduced()
        exact = levels.best_levels(lift, reduced)
        monkeypatch.setattr(levels, "_MANY", 1)
        monkeypatch.setattr(levels, "_krylov_basis", lambda form: None)
        assert levels.best_levels(lift, reduced) == exact


class TestProofsOfOneOutput:
    def test_better_multipliers_for_the_point_as_it_is(self) -> None:
        """The joint iterations' own multipliers are far off after a few rounds; time for proofs mends that, soundly."""
        rows = unit_rows(7, 160, 6)
        generator = np.random.default_rng(8)
        targets = np.maximum(rows @ generator.standard_normal(6), 0.0) + 0.3 * generator.standard_normal(160)
        targets /= np.linalg.norm(targets)
        loss = HuberRelaxedLoss(targets=targets, slope_bound=np.inf)
        training = RelaxedTraining(rows=rows, norms=np.ones(160), loss=loss, slope=0.0, path_decay=0.05, has_bias=False)
        ascent = JointLowRank(training)
        for _ in range(6):
            ascent.advance(lambda: False)
        spec = BranchSpec(widths=(6, 1, 1), activations=(BranchActivation(),))
        proof = JointProof(ascent.leaves, ascent.weights, np.ones(160, dtype=bool))
        state, duals = proof.init(spec, torch.from_numpy(rows)), torch.from_numpy(ascent.dual_point)[:, None]
        first = proof.bound(state, duals, BoundRequest(deadline=Deadline(0.0))).upper
        later = proof.bound(state, duals, BoundRequest(floor=0.0, rtol=1e-3, deadline=Deadline(4.0))).upper
        directions = generator.standard_normal((20_000, 6))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        attained = float(np.abs(np.maximum(directions @ rows.T, 0.0) @ ascent.dual_point).max())
        assert attained <= later < 0.95 * first
