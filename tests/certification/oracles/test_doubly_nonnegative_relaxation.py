from __future__ import annotations

import math
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.certification.oracles._random_problems import random_problem
from tests.contracts.oracle_cases import (
    OracleCase,
    bent_spec,
    orthonormal_cases,
    planar_cases,
    rank_three_cases,
    without_one_activation,
)
from tests.contracts.oracle_contract import OracleContract
from tests.references.doubly_nonnegative_sdp import doubly_nonnegative_value
from tests.references.enumeration import exact_dual_norm
from tests.references.planar import exact_planar_dual_norm
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles._doubly_nonnegative.contraction import Contraction
from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift
from torch_strongdual.certification.oracles._doubly_nonnegative.safe_bound import safe_upper
from torch_strongdual.certification.oracles._doubly_nonnegative.splitting import Splitting
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.auto_two_layer_oracle import AutoTwoLayerOracle
from torch_strongdual.certification.oracles.doubly_nonnegative_relaxation import DoublyNonnegativeRelaxation
from torch_strongdual.certification.oracles.quadratic_relaxation import QuadraticRelaxation
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem
from torch_strongdual.nn.branch_spec import BranchSpec

FloatArray = NDArray[np.float64]

CPU = torch.device("cpu")


lifts_and_sizes = given(
    seed=st.integers(0, 10**6),
    num_rows=st.integers(1, 8),
    rank=st.integers(1, 4),
    num_decided=st.integers(0, 8),
    size=st.sampled_from([0.0, 1e-8, 1e-2, 0.3, 1.0, 1e6]),
)
"""Draws a lift and the size of its multipliers."""


def random_lift(seed: int, num_rows: int, rank: int, *, num_decided: int = 0, linear: float = 0.0) -> Lift:
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((num_rows, rank))
    lift = Lift.of(
        rows / np.linalg.norm(rows, axis=1, keepdims=True),
        generator.standard_normal(num_rows) / math.sqrt(num_rows),
        linear * generator.standard_normal(rank) / math.sqrt(rank),
    )
    point = generator.standard_normal(rank)  # decided as at a point, so that the part is not empty
    for sample in range(num_decided):
        lift = lift.with_sign(sample, 1 if float(lift.rows[sample] @ point) > 0 else -1)
    return lift


def points_of(lift: Lift, seed: int, number: int) -> FloatArray:
    """Unit vectors in the part of the sphere that ``lift`` describes."""
    points = np.random.default_rng(seed).standard_normal((200 * number, lift.rank))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    inside = ((points @ lift.rows.T) * lift.signs >= 0).all(axis=1)
    return points[inside][:number]


def values_of(lift: Lift, points: FloatArray) -> FloatArray:
    values: FloatArray = points @ lift.linear + np.maximum(points @ lift.rows.T, 0.0) @ lift.weights
    return values


def maximise(
    problem: SphereProblem,
    *,
    rtol: float = 1e-2,
    seconds: float = 60.0,
    max_nodes: int | None = None,
    target: float | None = None,
) -> SphereBound:
    request = BoundRequest(rtol=rtol, target=target, deadline=Deadline(seconds))
    oracle = DoublyNonnegativeRelaxation(max_nodes=max_nodes)
    return oracle.maximise(problem, request, np.zeros((0, problem.rank)))


class TestOneOutput(OracleContract):
    rtol = 1e-2
    looseness = 1.0101

    def make_oracle(self) -> DoublyNonnegativeRelaxation:
        return DoublyNonnegativeRelaxation()

    def make_cases(self) -> list[OracleCase]:
        return [rank_three_cases()[1], *orthonormal_cases()]

    def make_unsupported_specs(self) -> list[BranchSpec]:
        return [*super().make_unsupported_specs(), *without_one_activation()]


class TestTwoOutputs(OracleContract):
    rtol = 1e-2
    looseness = None

    def make_oracle(self) -> DoublyNonnegativeRelaxation:
        return DoublyNonnegativeRelaxation(max_nodes=1)

    def make_cases(self) -> list[OracleCase]:
        return [planar_cases()[1]]


class TestLift:
    @settings(max_examples=60)
    @given(seed=st.integers(0, 10**6), num_rows=st.integers(1, 6), rank=st.integers(1, 4), num_decided=st.integers(0, 6))
    def test_expansion_of_true_vectors(self, seed: int, num_rows: int, rank: int, num_decided: int) -> None:
        lift = random_lift(seed, num_rows, rank, num_decided=min(num_decided, num_rows), linear=1.0)
        for point in points_of(lift, seed, 5):
            hidden = lift.rows @ point
            lifted = np.concatenate([[1.0], point, np.maximum(hidden, 0.0), np.maximum(-hidden, 0.0)])
            reduced = np.concatenate([[1.0], point, np.maximum(hidden, 0.0)[lift.signs == 0]])
            np.testing.assert_allclose(lift.expansion @ reduced, lifted, atol=1e-14)
            np.testing.assert_allclose(lifted @ lift.objective @ lifted, values_of(lift, point[None])[0], atol=1e-14)

    @settings(max_examples=60)
    @given(seed=st.integers(0, 10**6), num_rows=st.integers(1, 6), rank=st.integers(1, 4), num_decided=st.integers(0, 6))
    def test_contraction_is_the_product(self, seed: int, num_rows: int, rank: int, num_decided: int) -> None:
        lift = random_lift(seed, num_rows, rank, num_decided=min(num_decided, num_rows))
        matrix = np.random.default_rng(seed).standard_normal((lift.length, lift.length))
        matrix = matrix + matrix.T
        found = Contraction(lift, device=CPU)(torch.from_numpy(matrix)).numpy()
        np.testing.assert_allclose(found, lift.expansion.T @ matrix @ lift.expansion, atol=1e-12)
        np.testing.assert_array_equal(found, found.T)


class TestSafeBound:
    @settings(max_examples=100)
    @lifts_and_sizes
    def test_any_multipliers_give_a_bound(self, seed: int, num_rows: int, rank: int, num_decided: int, size: float) -> None:
        lift = random_lift(seed, num_rows, rank, num_decided=min(num_decided, num_rows), linear=1.0)
        noise = size * np.random.default_rng(seed).standard_normal((lift.length, lift.length))
        upper = safe_upper(lift, noise)
        assert (values_of(lift, points_of(lift, seed, 50)) <= upper + 1e-14).all()

    @pytest.mark.parametrize("num_decided", [0, 3, 6])
    def test_no_iterate_undercuts_what_is_attained(self, num_decided: int) -> None:
        for seed in range(4):
            lift = random_lift(seed, 6, 3, num_decided=num_decided, linear=float(seed % 2))
            attained = float(np.max(values_of(lift, points_of(lift, seed, 200)), initial=-math.inf))
            splitting = Splitting(lift, device=CPU)
            for _ in range(20):
                splitting.step()
                assert safe_upper(lift, splitting.multipliers) >= attained - 1e-14

    def test_a_cone_of_decided_signs_is_exact(self) -> None:
        """With all signs decided the objective is linear on a cone: its maximum is a projection."""
        for seed in range(5):
            lift = random_lift(seed, 6, 3, num_decided=6)
            patterns = lift.signs[None].astype(np.float64)
            truth = exact_dual_norm(lift.rows, lift.weights, one_sided=True, patterns=patterns)
            splitting = Splitting(lift, device=CPU)
            for _ in range(400):
                splitting.step()
            upper = max(0.0, safe_upper(lift, splitting.multipliers))
            assert truth - 1e-14 <= upper <= truth + 2e-3

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_non_finite_multipliers_prove_nothing(self, value: float) -> None:
        lift = random_lift(0, 4, 2)
        assert safe_upper(lift, np.full((lift.length, lift.length), value)) == math.inf


class TestAgainstInteriorPoints:
    @pytest.mark.parametrize(("num_rows", "rank", "linear"), [(1, 1, 1.0), (3, 2, 0.0), (6, 3, 1.0), (8, 5, 0.0), (10, 4, 1.0)])
    def test_value_of_the_relaxation(self, num_rows: int, rank: int, linear: float) -> None:
        lift = random_lift(10 * num_rows + rank, num_rows, rank, linear=linear)
        truth = doubly_nonnegative_value(lift.rows, lift.weights, lift.linear)
        splitting, best = Splitting(lift, device=CPU), math.inf
        for _ in range(30):
            for _ in range(20):
                splitting.step()
            best = min(best, safe_upper(lift, splitting.multipliers))
            splitting.balance()
        assert best == pytest.approx(truth, abs=1e-5)
        assert best >= truth - 1e-6


class TestTightness:
    def test_orthonormal_rows_are_exact(self) -> None:
        duals = np.array([3.0, 4.0, -1.0, -2.0])
        problem = SphereProblem(rows=np.eye(4), duals=duals[:, None], linear=np.zeros((4, 1)), one_sided=True)
        found = maximise(problem, max_nodes=1, rtol=1e-3)
        assert 5.0 <= found.upper <= 5.006

    @pytest.mark.parametrize(("num_rows", "rank"), [(20, 4), (30, 12)])
    def test_tighter_than_the_quadratic_relaxation(self, num_rows: int, rank: int) -> None:
        problem = random_problem(num_rows, num_rows, rank)
        request = BoundRequest(rtol=1e-3, deadline=Deadline(20.0))
        quadratic = QuadraticRelaxation().maximise(problem, request, np.zeros((0, rank)))
        found = maximise(problem, max_nodes=1, rtol=1e-3)
        assert found.upper - found.lower <= max(1.1e-3 * found.lower, 0.5 * (quadratic.upper - quadratic.lower))

    @pytest.mark.parametrize(("num_rows", "rank"), [(12, 3), (20, 5), (25, 12)])
    def test_splitting_closes_the_gap(self, num_rows: int, rank: int) -> None:
        for seed in range(3):
            problem = random_problem(seed, num_rows, rank, linear=float(seed == 2))
            found = maximise(problem, rtol=1e-2)
            assert found.upper <= 1.01 * found.lower + 1e-9 * problem.magnitude()
            assert "limited_by" not in found.stats

    def test_two_outputs_lose_little(self) -> None:
        problem = random_problem(3, 10, 2, num_outputs=2)
        truth = exact_planar_dual_norm(problem.rows, problem.duals)
        assert truth * (1 - 1e-14) <= maximise(problem).upper <= 1.031 * truth


class TestSoundness:
    @pytest.mark.parametrize("max_nodes", [1, 5, None])
    def test_enumerated_maxima_are_never_undercut(self, max_nodes: int | None) -> None:
        generator = np.random.default_rng(0)
        for seed in range(12):
            problem = random_problem(seed, int(generator.integers(1, 8)), int(generator.integers(1, 4)), linear=float(seed % 3))
            truth = exact_dual_norm(problem.rows, problem.duals[:, 0], problem.linear[:, 0], one_sided=True)
            found = maximise(problem, max_nodes=max_nodes)
            error = 1e-14 * problem.magnitude()
            assert found.upper >= truth - error, seed
            assert found.lower <= truth + error, seed

    @pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-7])
    def test_a_target_below_the_truth_is_never_proven(self, distance: float) -> None:
        for seed in range(8):
            problem = random_problem(seed, 6, 3)
            truth = exact_dual_norm(problem.rows, problem.duals[:, 0], problem.linear[:, 0], one_sided=True)
            found = maximise(problem, rtol=0.0, target=(1 - distance) * truth, max_nodes=20, seconds=1.0)
            assert found.upper >= truth - 1e-14 * problem.magnitude(), seed

    def test_one_sample_is_bounded_in_exact_arithmetic(self) -> None:
        """The maximum is lam ||x||, attained exactly by the relaxation: rounding has to be paid for."""
        generator = np.random.default_rng(0)
        for _ in range(20):
            row, dual = generator.standard_normal(4), float(generator.random() + 0.1)
            problem = SphereProblem(rows=row[None], duals=np.array([[dual]]), linear=np.zeros((4, 1)), one_sided=True)
            upper = maximise(problem).upper
            square = Fraction(dual) ** 2 * sum((Fraction(float(v)) ** 2 for v in row), Fraction(0))
            assert Fraction(upper) ** 2 >= square

    def test_rows_of_very_different_length(self) -> None:
        for seed in range(6):
            problem = random_problem(seed, 6, 2)
            sizes = 10.0 ** np.array([-160.0, -120.0, -9.0, -3.0, 0.0, 2.0])
            rows, duals = problem.rows * sizes[:, None], problem.duals / np.sqrt(sizes)[:, None]
            scaled = SphereProblem(rows=rows, duals=duals, linear=problem.linear, one_sided=True)
            unit = 10.0 * float(np.abs(duals * sizes[:, None]).max())
            truth = exact_planar_dual_norm(rows, duals / unit, problem.linear / unit, one_sided=True) * unit
            assert maximise(scaled, max_nodes=4).upper >= truth * (1 - 1e-13), seed


class TestLimits:
    def test_a_linear_problem_is_its_norm(self) -> None:
        problem = random_problem(0, 4, 3, linear=1.0)
        linear = SphereProblem(rows=problem.rows, duals=0.0 * problem.duals, linear=problem.linear, one_sided=True)
        truth = float(np.linalg.norm(problem.linear))
        assert truth <= maximise(linear).upper <= 1.01 * truth

    def test_what_is_never_positive_is_zero(self) -> None:
        problem = random_problem(0, 5, 3)
        negative = SphereProblem(rows=problem.rows, duals=-np.abs(problem.duals), linear=problem.linear, one_sided=True)
        assert maximise(negative).upper == 0.0

    def test_node_budget_is_kept_and_named(self) -> None:
        problem = random_problem(1, 40, 5)
        found = maximise(problem, rtol=1e-6, max_nodes=4)
        assert found.stats["nodes"] == 4.0
        assert found.stats["limited_by"] == "max_nodes"

    @pytest.mark.parametrize("seconds", [0.0, 0.2, 1.0])
    def test_deadline_is_kept_and_named(self, seconds: float) -> None:
        problem = random_problem(1, 120, 12)
        begin = time.process_time()
        found = maximise(problem, rtol=1e-6, seconds=seconds)
        assert time.process_time() - begin <= seconds + 1.0
        assert found.stats["limited_by"] == "time"
        assert found.lower <= found.upper < math.inf

    def test_a_counterexample_ends_the_search(self) -> None:
        problem = random_problem(1, 60, 5)
        found = maximise(problem, rtol=1e-3)
        refuted = maximise(problem, rtol=1e-3, target=0.5 * found.lower)
        assert refuted.lower > 0.5 * found.lower
        assert refuted.stats["nodes"] in (0.0, 1.0)

    def test_too_many_samples_are_refused(self) -> None:
        oracle = DoublyNonnegativeRelaxation(max_rows=4)
        inputs, duals = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
        found = oracle.bound(oracle.init(bent_spec(3, 1, 1), inputs), duals, BoundRequest(deadline=Deadline(1.0)))
        assert found.upper == math.inf
        assert "max_rows=4" in str(found.stats["limited_by"])


class TestInAutoTwoLayerOracle:
    def bound(self, num_rows: int, rank: int, *, seconds: float = 20.0, rtol: float = 1e-2) -> SphereBound:
        problem = random_problem(0, num_rows, rank)
        request = BoundRequest(rtol=rtol, deadline=Deadline(seconds))
        return AutoTwoLayerOracle().maximise(problem, request, np.zeros((0, rank)))

    def test_rank_above_ten_is_closed_by_it(self) -> None:
        found = self.bound(30, 12)
        assert found.stats["oracle"] == "DoublyNonnegativeRelaxation"
        assert found.upper <= 1.01 * found.lower
        assert "limited_by" not in found.stats

    def test_boxes_go_first_at_rank_eight(self) -> None:
        assert self.bound(20, 8).stats["oracle"] in ("BoxBranchAndBound", "QuadraticRelaxation")

    def test_what_limits_it_is_said(self) -> None:
        found = self.bound(150, 15, seconds=0.5, rtol=1e-7)
        assert found.stats["limited_by"] == "time"
