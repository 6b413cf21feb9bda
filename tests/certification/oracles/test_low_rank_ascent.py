"""The low-rank solver of the doubly nonnegative relaxation: its parts, its bounds against others, and hostile sizes."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.certification.oracles._random_problems import random_problem
from tests.certification.oracles.test_doubly_nonnegative_relaxation import (
    CPU,
    lifts_and_sizes,
    points_of,
    random_lift,
    values_of,
)
from tests.references.doubly_nonnegative_sdp import doubly_nonnegative_value
from tests.references.enumeration import exact_dual_norm
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles._doubly_nonnegative.factor_penalty import FactorPenalty
from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift
from torch_strongdual.certification.oracles._doubly_nonnegative.limited_memory import LimitedMemory
from torch_strongdual.certification.oracles._doubly_nonnegative.low_rank_ascent import LowRankAscent
from torch_strongdual.certification.oracles._doubly_nonnegative.product_multipliers import ProductMultipliers
from torch_strongdual.certification.oracles._doubly_nonnegative.reduced_form import DenseForm, SparseForm
from torch_strongdual.certification.oracles._doubly_nonnegative.safe_bound import safe_upper_of_products
from torch_strongdual.certification.oracles._doubly_nonnegative.splitting import Splitting
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.doubly_nonnegative_relaxation import DoublyNonnegativeRelaxation
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem

FloatArray = NDArray[np.float64]


def random_multipliers(lift: Lift, seed: int, *, size: float, share: float = 0.5) -> ProductMultipliers:
    """Of any sign, on some of the pairs."""
    generator = np.random.default_rng(seed)
    number = lift.num_rows
    first, second = np.triu_indices(2 * number, 1)
    chosen = (second != first + number) & (generator.random(len(first)) < share)
    return ProductMultipliers(
        first=first[chosen],
        second=second[chosen],
        products=size * generator.standard_normal(int(chosen.sum())),
        crossed=size * generator.standard_normal(number),
        cones=size * generator.standard_normal((2 * number, 1 + lift.rank)),
    )


def dense(lift: Lift, multipliers: ProductMultipliers) -> FloatArray:
    """The symmetric matrix of the same form."""
    first, number = 1 + lift.rank, lift.num_rows
    matrix = np.zeros((lift.length, lift.length))
    matrix[first + multipliers.first, first + multipliers.second] = 0.5 * multipliers.products
    samples = np.arange(number)
    matrix[first + samples, first + number + samples] = 0.5 * multipliers.crossed
    matrix[:first, first:] = 0.5 * multipliers.cones.T
    return matrix + matrix.T


def best_bound(ascent: LowRankAscent, *, rounds: int) -> float:
    best = math.inf
    for _ in range(rounds):
        assert ascent.advance(lambda: False)
        best = min(best, ascent.upper())
    return best


def maximise(problem: SphereProblem, *, seconds: float = 20.0, max_nodes: int | None = None) -> SphereBound:
    oracle = DoublyNonnegativeRelaxation(low_rank_rows=0, max_nodes=max_nodes)
    return oracle.maximise(problem, BoundRequest(deadline=Deadline(seconds)), np.zeros((0, problem.rank)))


class TestLimitedMemory:
    def test_finds_the_minimum_of_an_ill_conditioned_parabola(self) -> None:
        curvatures = np.geomspace(1.0, 1e3, 20)
        centre = np.random.default_rng(0).standard_normal(20)

        def parabola(point: FloatArray) -> tuple[float, FloatArray]:
            away = point - centre
            return 0.5 * float(away @ (curvatures * away)), curvatures * away

        found = LimitedMemory(20).minimise(parabola, np.zeros(20), num_steps=200)
        np.testing.assert_allclose(found, centre, atol=1e-5)

    def test_time_is_looked_at_before_every_step(self) -> None:
        seen = [0]

        def is_over() -> bool:
            seen[0] += 1
            return seen[0] > 3

        found = LimitedMemory(2).minimise(
            lambda x: (float(x[0]), np.array([1.0, 0.0])), np.ones(2), num_steps=50, is_over=is_over
        )
        assert seen[0] == 4
        assert found[0] < 1.0


class TestFactorPenalty:
    @pytest.mark.parametrize("num_decided", [0, 2])
    def test_gradient(self, num_decided: int) -> None:
        lift = random_lift(0, 5, 3, num_decided=num_decided)
        generator = np.random.default_rng(1)
        multipliers = random_multipliers(lift, 2, size=1.0)
        penalty = FactorPenalty(lift, dataclasses.replace(multipliers, products=np.abs(multipliers.products)), 3.0)
        linear, opened = generator.standard_normal((3, 4)), generator.standard_normal((5, 4))
        along = 0.7, generator.standard_normal((3, 4)), generator.standard_normal((5, 4))

        def value(step: float) -> float:
            moved = linear + step * along[1], opened + step * along[2]
            return penalty.evaluate(1.3 + step * along[0], moved[0], penalty.factor(*moved)).value

        found = penalty.evaluate(1.3, linear, penalty.factor(linear, opened))
        of_linear, of_opened = penalty.pulled_back(found.products)
        slope = along[0] * found.size + np.vdot(along[1], of_linear + found.linear) + np.vdot(along[2], of_opened)
        assert (value(1e-6) - value(-1e-6)) / 2e-6 == pytest.approx(slope, rel=1e-6)

    def test_factor_is_what_signs_say(self) -> None:
        """At a factor of one column that is a true vector, the rows are (z, s) of it."""
        lift = random_lift(3, 6, 3, num_decided=3)
        point = points_of(lift, 0, 1)[0]
        hidden = lift.rows @ point
        rows = FactorPenalty(lift, ProductMultipliers.zero(lift), 1.0).factor(point[:, None], np.abs(hidden)[:, None])
        np.testing.assert_allclose(rows[:, 0], np.concatenate([np.maximum(hidden, 0.0), np.maximum(-hidden, 0.0)]), atol=1e-15)


class TestSafeBoundOfProducts:
    @settings(max_examples=100, deadline=None)
    @given(seed=st.integers(0, 10**6), num_rows=st.integers(1, 7), rank=st.integers(1, 4), num_decided=st.integers(0, 7))
    def test_the_form_is_that_of_the_full_matrix(self, seed: int, num_rows: int, rank: int, num_decided: int) -> None:
        lift = random_lift(seed, num_rows, rank, num_decided=min(num_decided, num_rows), linear=1.0)
        multipliers = random_multipliers(lift, seed, size=1.0)
        sparse, full = SparseForm(lift, multipliers), DenseForm(lift, dense(lift, multipliers))
        sizes = np.random.default_rng(seed).random(lift.length)
        for price in (0.0, 0.7):
            sparse.subtract(price)
            full.subtract(price)
            np.testing.assert_allclose(sparse.reduced(), full.reduced(), atol=1e-12)
            np.testing.assert_array_equal(sparse.reduced(), sparse.reduced().T)
            assert sparse.magnitude(sizes) == pytest.approx(full.magnitude(sizes), rel=1e-12)

    @settings(max_examples=100, deadline=None)
    @lifts_and_sizes
    def test_any_multipliers_give_a_bound(self, seed: int, num_rows: int, rank: int, num_decided: int, size: float) -> None:
        lift = random_lift(seed, num_rows, rank, num_decided=min(num_decided, num_rows), linear=1.0)
        upper = safe_upper_of_products(lift, random_multipliers(lift, seed, size=size))
        assert (values_of(lift, points_of(lift, seed, 50)) <= upper + 1e-14).all()

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_non_finite_multipliers_prove_nothing(self, value: float) -> None:
        lift = random_lift(0, 4, 2)
        multipliers = dataclasses.replace(ProductMultipliers.zero(lift), crossed=np.full(4, value))
        assert safe_upper_of_products(lift, multipliers) == math.inf


class TestBounds:
    @pytest.mark.parametrize(("num_rows", "rank"), [(1, 1), (6, 3), (10, 4)])
    @pytest.mark.parametrize("linear", [0.0, 1.0])
    def test_value_of_the_relaxation(self, num_rows: int, rank: int, linear: float) -> None:
        lift = random_lift(10 * num_rows + rank, num_rows, rank, linear=linear)
        truth = doubly_nonnegative_value(lift.rows, lift.weights, lift.linear)
        best = best_bound(LowRankAscent(lift), rounds=25)
        assert truth - 1e-6 <= best <= truth + 1e-4

    def test_as_tight_as_alternating_projections(self) -> None:
        lift = random_lift(7, 30, 6)
        splitting, other = Splitting(lift, device=CPU), math.inf
        for _ in range(25):
            splitting.advance(lambda: False)
            other = min(other, splitting.upper())
        assert best_bound(LowRankAscent(lift), rounds=30) == pytest.approx(other, rel=1e-3)

    @pytest.mark.parametrize("num_decided", [0, 3, 6])
    def test_no_iterate_undercuts_what_is_attained(self, num_decided: int) -> None:
        for seed in range(4):
            lift = random_lift(seed, 6, 3, num_decided=num_decided, linear=float(seed % 2))
            attained = float(np.max(values_of(lift, points_of(lift, seed, 200)), initial=-math.inf))
            ascent = LowRankAscent(lift)
            for _ in range(5):
                ascent.advance(lambda: False)
                assert ascent.upper() >= attained - 1e-14

    def test_goes_on_where_another_one_stopped(self) -> None:
        lift = random_lift(2, 30, 5)
        ascent = LowRankAscent(lift)
        reached = best_bound(ascent, rounds=25)
        again = LowRankAscent(lift, start=ascent.point)
        assert best_bound(again, rounds=1) <= reached * 1.01
        child = LowRankAscent(lift.with_sign(0, 1), start=ascent.point)
        assert best_bound(child, rounds=8) <= reached * 1.001


class TestOracle:
    def test_enumerated_maxima_are_never_undercut(self) -> None:
        generator = np.random.default_rng(0)
        for seed in range(8):
            problem = random_problem(seed, int(generator.integers(1, 8)), int(generator.integers(1, 4)), linear=float(seed % 3))
            truth = exact_dual_norm(problem.rows, problem.duals[:, 0], problem.linear[:, 0], one_sided=True)
            found = maximise(problem)
            error = 1e-14 * problem.magnitude()
            assert truth - error <= found.upper <= 1.01 * truth + 1e-9 * problem.magnitude(), seed
            assert found.lower <= truth + error, seed

    @pytest.mark.parametrize("units", [(1e150, 1e-150), (1e-150, 1e-150), (1e150, 1.0), (1e-150, 1e150)])
    def test_any_units(self, units: tuple[float, float]) -> None:
        problem = random_problem(5, 8, 3)
        truth = exact_dual_norm(problem.rows, problem.duals[:, 0], one_sided=True)
        scaled = SphereProblem(
            rows=units[0] * problem.rows, duals=units[1] * problem.duals, linear=0.0 * problem.linear, one_sided=True
        )
        ratio = maximise(scaled).upper / units[0] / units[1] / truth
        assert 1.0 - 1e-13 <= ratio <= 1.011

    def test_method_is_named_and_chosen_by_the_number_of_samples(self) -> None:
        few, many = random_problem(0, 20, 5), random_problem(0, 100, 12)
        request = BoundRequest(rtol=0.5, deadline=Deadline(10.0))
        methods = [
            DoublyNonnegativeRelaxation(max_nodes=1).maximise(problem, request, np.zeros((0, problem.rank))).stats["method"]
            for problem in (few, many)
        ]
        assert methods == ["alternating projections", "low-rank factor"]

    @pytest.mark.parametrize("seconds", [0.0, 0.5, 1.5])
    def test_deadline_is_kept_with_many_samples(self, seconds: float) -> None:
        problem = random_problem(1, 600, 12)
        begin = time.process_time()
        found = maximise(problem, seconds=seconds)
        assert time.process_time() - begin <= seconds + 1.0
        assert found.stats["limited_by"] == "time"
        assert found.lower <= found.upper < math.inf
