from __future__ import annotations

import functools
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.certification.oracles import _random_problems
from tests.certification.oracles._random_problems import on_sphere
from tests.contracts.oracle_cases import OracleCase, orthonormal_cases, planar_cases, rank_three_cases, without_one_activation
from tests.contracts.oracle_contract import REFERENCE_ERROR, OracleContract
from tests.references.enumeration import exact_dual_norm
from tests.references.planar import exact_planar_dual_norm
from tests.references.quartic_sandwich_sdp import quartic_sandwich_value
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles._sandwich import groups
from torch_strongdual.certification.oracles._sandwich.gram import GramSpace
from torch_strongdual.certification.oracles._sandwich.majorant import QuarticMajorant
from torch_strongdual.certification.oracles._sandwich.problem import UnitRows
from torch_strongdual.certification.oracles._sandwich.quartics import LEAST_TOUCH, Shapes, best_touches, even_quartics
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.auto_two_layer_oracle import AutoTwoLayerOracle
from torch_strongdual.certification.oracles.box_branch_and_bound import BoxBranchAndBound
from torch_strongdual.certification.oracles.doubly_nonnegative_relaxation import DoublyNonnegativeRelaxation
from torch_strongdual.certification.oracles.polynomial_sandwich import PolynomialSandwich
from torch_strongdual.certification.oracles.quadratic_relaxation import QuadraticRelaxation
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem
from torch_strongdual.nn.branch_spec import BranchSpec

FloatArray = NDArray[np.float64]


random_problem = functools.partial(_random_problems.random_problem, uneven=True)


def maximise(problem: SphereProblem, *, rtol: float = 1e-4, seconds: float = 20.0, target: float | None = None) -> SphereBound:
    request = BoundRequest(rtol=rtol, target=target, deadline=Deadline(seconds))
    return PolynomialSandwich().maximise(problem, request, np.zeros((0, problem.rank)))


class TestPolynomialSandwich(OracleContract):
    rtol = 1e-2
    looseness = None

    def make_oracle(self) -> PolynomialSandwich:
        return PolynomialSandwich()

    def make_cases(self) -> list[OracleCase]:
        return [planar_cases()[1], rank_three_cases()[1], *orthonormal_cases()]

    def make_unsupported_specs(self) -> list[BranchSpec]:
        return [*super().make_unsupported_specs(), *without_one_activation()]


class TestQuartics:
    @given(touch=st.floats(LEAST_TOUCH, 1.0), argument=st.floats(0.0, 1.0))
    def test_they_lie_on_their_side_in_exact_arithmetic(self, touch: float, argument: float) -> None:
        """The formulas, evaluated in fractions; the computed coefficients differ from them by roundings only."""
        a, t = Fraction(touch), Fraction(argument)
        wide = (1 + a) ** 2
        above = [a * (1 + 2 * a) / (2 * wide), (wide + 2 * a * a) / (2 * a * wide), -1 / (2 * a * wide)]
        below = [Fraction(0), 3 / (2 * a), -1 / (2 * a**3)]
        assert above[0] + above[1] * t**2 + above[2] * t**4 >= t
        assert below[1] * t**2 + below[2] * t**4 <= t
        for exact, is_above in ((above, True), (below, False)):
            computed, _ = even_quartics(np.array([touch]), np.array([is_above]))
            for one, other in zip(exact, computed[:, 0], strict=True):
                assert abs(one - Fraction(float(other))) <= 12 * Fraction(1, 2**53) * abs(one)

    @pytest.mark.parametrize("touch", [0.02, 0.3, 0.8, 0.99])
    def test_they_touch_and_their_slopes_are_derivatives(self, touch: float) -> None:
        kinds = np.array([True, False])
        values, slopes = even_quartics(np.array([touch, touch]), kinds)
        powers = np.array([1.0, touch**2, touch**4])
        assert powers @ values == pytest.approx([touch, touch])
        assert np.array([0.0, 2 * touch, 4 * touch**3]) @ values == pytest.approx([1.0, 1.0], abs=1e-9)
        step = 1e-6
        ahead, _ = even_quartics(np.full(2, touch * math.exp(step)), kinds)
        behind, _ = even_quartics(np.full(2, touch * math.exp(-step)), kinds)
        assert (ahead - behind) / (2 * step) == pytest.approx(slopes, rel=1e-6, abs=1e-6)

    @given(share=st.floats(-0.1, 1.1), leaning=st.floats(-1.1, 1.1))
    def test_tilts_leave_room_for_the_shares_in_exact_arithmetic(self, share: float, leaning: float) -> None:
        one = np.ones(1)
        below = Shapes.of(one, share * one, leaning * one, np.array([False]))
        assert 0.0 <= below.shares[0] <= 1.0
        assert abs(Fraction(float(below.tilts[0]))) + Fraction(float(below.shares[0])) <= 1
        above = Shapes.of(one, share * one, leaning * one, np.array([True]))
        assert (above.shares[0], above.tilts[0]) == (1.0, 0.0)

    def test_best_touches_beat_all_others(self) -> None:
        generator = np.random.default_rng(0)
        samples = generator.beta(0.7, 2.0, (40, 30))
        second, fourth = (samples**2).mean(axis=1), (samples**4).mean(axis=1)
        moments = np.stack([np.ones(40), second, fourth])
        for is_above in (True, False):
            kinds, sign = np.full(40, is_above), 1.0 if is_above else -1.0
            best = sign * np.sum(even_quartics(best_touches(second, fourth, kinds), kinds)[0] * moments, axis=0)
            for touch in np.linspace(LEAST_TOUCH, 1.0, 97):
                other = sign * np.sum(even_quartics(np.full(40, touch), kinds)[0] * moments, axis=0)
                assert (best <= other + 2e-3 * np.abs(other)).all()


class TestGramSpace:
    @pytest.mark.parametrize("rank", [1, 2, 5])
    def test_products_are_inner_products_squared(self, rank: int) -> None:
        space, points = GramSpace(rank), on_sphere(0, 6, rank)
        products = space.products(points)
        assert products @ products.T == pytest.approx((points @ points.T) ** 2)
        assert products @ space.identity == pytest.approx(np.ones(6))
        matrix = np.random.default_rng(1).standard_normal((rank, rank))
        matrix = matrix + matrix.T
        assert products @ space.flat(matrix) == pytest.approx(np.einsum("ni,ij,nj->n", points, matrix, points))
        assert space.square(space.flat(matrix)) == pytest.approx(matrix)

    @pytest.mark.parametrize("rank", [1, 2, 4])
    def test_averages_keep_the_polynomial_and_are_unique(self, rank: int) -> None:
        space, generator = GramSpace(rank), np.random.default_rng(2)
        points = generator.standard_normal((200, rank))
        products = space.products(points)
        even = generator.standard_normal((space.num_products, space.num_products))
        odd = generator.standard_normal((rank, space.num_products))
        even_mean, odd_mean = space.even_values(even), space.odd_values(odd)
        assert np.einsum("ni,ij,nj->n", products, even_mean, products) == pytest.approx(
            np.einsum("ni,ij,nj->n", products, even, products)
        )
        assert np.einsum("ni,ij,nj->n", points, odd_mean, products) == pytest.approx(
            np.einsum("ni,ij,nj->n", points, odd, products)
        )
        # What the averages leave free is the number of monomials of degree 4 and 3, and no more.
        for mean, size, degree in ((space.even_values, even.shape, 4), (space.odd_values, odd.shape, 3)):
            units = np.eye(size[0] * size[1]).reshape(-1, *size)
            dimension = np.linalg.matrix_rank(np.stack([mean(unit).ravel() for unit in units]))
            assert dimension == sum(1 for _ in itertools.combinations_with_replacement(range(rank), degree))


class TestTightness:
    @pytest.mark.parametrize(("num_rows", "rank", "linear"), [(40, 3, 0.0), (40, 3, 1.0), (30, 4, 0.0)])
    def test_no_quartics_and_tilts_are_better(self, num_rows: int, rank: int, linear: float) -> None:
        problem = random_problem(num_rows, num_rows, rank, linear=linear)
        best = quartic_sandwich_value(problem.rows, problem.duals[:, 0], problem.linear[:, 0])
        found = maximise(problem, rtol=0.0)
        assert best * (1 - 1e-6) <= found.upper <= 1.01 * best

    def test_tighter_than_quadratic_majorants_with_many_samples(self) -> None:
        problem = random_problem(0, 300, 6)
        request = BoundRequest(rtol=1e-3, deadline=Deadline(20.0))
        quadratic = QuadraticRelaxation().maximise(problem, request, np.zeros((0, 6)))
        assert maximise(problem).upper < 0.9 * quadratic.upper

    def test_tied_touching_points_cost_little(self, monkeypatch: pytest.MonkeyPatch) -> None:
        problem = random_problem(1, 400, 4)
        free = maximise(problem).upper
        monkeypatch.setattr(groups, "_MAX_FREE", 100)
        tied = maximise(problem).upper
        assert free * (1 - 3e-3) <= tied <= 1.02 * free

    def test_it_is_chosen_where_the_doubly_nonnegative_relaxation_and_boxes_are_not(self) -> None:
        problem, none = random_problem(0, 60, 8), np.zeros((0, 8))
        auto = AutoTwoLayerOracle(boxes=BoxBranchAndBound(max_rank=3), relaxation=DoublyNonnegativeRelaxation(max_rows=50))
        found = auto.maximise(problem, BoundRequest(deadline=Deadline(20.0)), none)
        quadratic = QuadraticRelaxation().maximise(problem, BoundRequest(deadline=Deadline(20.0)), none)
        assert found.stats["oracle"] == "PolynomialSandwich"
        assert found.lower <= found.upper < quadratic.upper

    def test_one_output_is_the_larger_side(self) -> None:
        both = random_problem(2, 15, 2)
        two_sided = SphereProblem(rows=both.rows, duals=both.duals, linear=both.linear)
        assert maximise(two_sided).upper >= exact_planar_dual_norm(both.rows, both.duals)
        assert maximise(two_sided).upper == pytest.approx(max(maximise(both.half(s)).upper for s in (1.0, -1.0)), rel=1e-2)


class TestSoundness:
    def test_maxima_by_enumeration_are_never_undercut(self) -> None:
        generator = np.random.default_rng(0)
        for seed in range(20):
            rank = int(generator.integers(1, 5))
            problem = random_problem(seed, int(generator.integers(1, 9)), rank, linear=float(seed % 3))
            truth = exact_dual_norm(problem.rows, problem.duals[:, 0], problem.linear[:, 0], one_sided=True)
            found, error = maximise(problem, rtol=1e-2, seconds=0.3), REFERENCE_ERROR * problem.magnitude()
            assert found.upper >= truth - error, seed
            assert found.lower <= truth + error, seed

    def test_targets_just_below_the_truth_are_never_proven(self) -> None:
        for seed in range(6):
            problem = random_problem(seed, 7, 2, linear=float(seed % 2))
            truth = exact_planar_dual_norm(problem.rows, problem.duals, problem.linear, one_sided=True)
            for distance in (1e-3, 1e-9):
                found = maximise(problem, target=truth * (1 - distance), seconds=0.5)
                assert found.upper >= truth * (1 - 1e-13), (seed, distance)

    @settings(max_examples=100)
    @given(
        seed=st.integers(0, 10**6),
        num_rows=st.integers(1, 12),
        rank=st.integers(1, 5),
        size=st.sampled_from([0.0, 1e-8, 1.0, 1e6]),
        null=st.booleans(),
    )
    def test_any_parameters_give_a_bound(self, seed: int, num_rows: int, rank: int, size: float, null: bool) -> None:
        """Also Gram matrices N and C that are not zero on the sphere: what they add is subtracted."""
        problem, generator = random_problem(seed, num_rows, rank, linear=1.0), np.random.default_rng(seed)
        scaled, space = UnitRows.of(problem), GramSpace(rank)
        even = size * generator.standard_normal((space.num_products, space.num_products))
        odd = size * generator.standard_normal((rank, space.num_products))
        shift = size * generator.standard_normal((rank, rank))
        touches, shares, leanings = generator.uniform(-1.5, 1.5, (3, num_rows))
        shapes = Shapes.of(touches, shares, leanings, scaled.weights > 0)
        majorant = QuarticMajorant(
            space=space,
            shapes=shapes,
            shift=shift + shift.T,
            even=even - space.even_values(even) if null else even,
            odd=odd - space.odd_values(odd) if null else odd,
        )
        points = np.concatenate([on_sphere(seed, 50, rank), problem.rows / np.linalg.norm(problem.rows, axis=1, keepdims=True)])
        best = float(np.max(problem.values(points), initial=0.0))
        upper = scaled.upper(majorant.proven_maximum(scaled))
        assert best - 1e-14 * problem.magnitude() <= upper < math.inf

    def test_one_sample_is_bounded_in_exact_arithmetic(self) -> None:
        generator = np.random.default_rng(0)
        for _ in range(15):
            row, dual = generator.standard_normal(3), float(generator.random() + 0.1)
            problem = SphereProblem(rows=row[None], duals=np.array([[dual]]), linear=np.zeros((3, 1)), one_sided=True)
            upper = maximise(problem, rtol=0.0, seconds=0.3).upper
            assert Fraction(upper) ** 2 >= Fraction(dual) ** 2 * sum((Fraction(float(v)) ** 2 for v in row), Fraction(0))

    @pytest.mark.parametrize("length", [1e-160, 1e-99, 1e-30, 1e30])
    def test_rows_of_very_different_length(self, length: float) -> None:
        problem = random_problem(0, 8, 2)
        np.abs(problem.duals, out=problem.duals)  # else the maximum may be 0
        problem.rows[0] *= length
        problem.duals[1] *= length
        truth = exact_planar_dual_norm(problem.rows, problem.duals, problem.linear, one_sided=True)
        assert truth * (1 - 1e-13) <= maximise(problem, seconds=1.0).upper <= 3.0 * truth

    def test_negative_problems_have_maximum_zero(self) -> None:
        rows = np.concatenate([np.eye(3), -np.eye(3)])
        problem = SphereProblem(rows=rows, duals=-np.ones((6, 1)), linear=np.zeros((3, 1)), one_sided=True)
        assert maximise(problem).upper == 0.0

    def test_weight_on_zero_rows_only_is_a_maximum_of_zero(self) -> None:
        rows = np.array([[-0.75, 0.99, 1.0], [0.0, 0.0, 0.0]])
        problem = SphereProblem(rows=rows, duals=np.array([[0.0], [1.0]]), linear=np.zeros((3, 1)), one_sided=True)
        found = maximise(problem)
        assert found.lower == 0.0
        assert 0.0 <= found.upper < 1e-90

    def test_a_linear_problem_is_its_norm(self) -> None:
        problem = SphereProblem(rows=np.zeros((2, 2)), duals=np.ones((2, 1)), linear=np.array([[3.0], [4.0]]), one_sided=True)
        assert 5.0 <= maximise(problem).upper <= 5.0 + 1e-9

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_non_finite_problems_prove_nothing(self, value: float) -> None:
        problem = random_problem(0, 4, 2)
        problem.linear[0, 0] = value
        found = maximise(problem)
        assert found.upper == math.inf
        assert "finite" in str(found.stats["limited_by"])

    def test_no_time_gives_a_valid_bound(self) -> None:
        problem = random_problem(1, 30, 2)
        found = maximise(problem, seconds=0.0)
        assert exact_planar_dual_norm(problem.rows, problem.duals, one_sided=True) <= found.upper < math.inf
        assert found.stats["limited_by"] == "time"

    @pytest.mark.parametrize("num_outputs", [2, 3])
    def test_norms_of_several_outputs_are_never_undercut(self, num_outputs: int) -> None:
        for seed in range(3):
            problem = random_problem(seed, 6, 2, num_outputs=num_outputs, linear=float(seed % 2))
            truth = exact_planar_dual_norm(problem.rows, problem.duals, problem.linear)
            assert maximise(problem, seconds=1.0).upper >= truth * (1 - 1e-13)

    def test_high_ranks_are_refused(self) -> None:
        assert "max_rank=24" in str(PolynomialSandwich().limits(25, 1000, 1))
        assert PolynomialSandwich(max_rank=30).limits(25, 1000, 1) is None
