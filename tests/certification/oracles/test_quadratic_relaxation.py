from __future__ import annotations

import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.certification.oracles._random_problems import on_sphere, random_problem
from tests.contracts.oracle_cases import OracleCase, orthonormal_cases, planar_cases, rank_three_cases, without_one_activation
from tests.contracts.oracle_contract import OracleContract
from tests.references.planar import exact_planar_dual_norm
from tests.references.quadratic_relaxation_sdp import quadratic_relaxation_value
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles._quadratic import majorant_search
from torch_strongdual.certification.oracles._quadratic.bilinear_majorant import bilinear_maximum
from torch_strongdual.certification.oracles._quadratic.quadratic_majorant import (
    QuadraticMajorant,
    secular_root,
    secular_roots,
)
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.quadratic_relaxation import QuadraticRelaxation
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem
from torch_strongdual.nn.branch_spec import BranchSpec

FloatArray = NDArray[np.float64]


def maximise(problem: SphereProblem, *, rtol: float = 1e-4, seconds: float = 60.0) -> SphereBound:
    request = BoundRequest(rtol=rtol, deadline=Deadline(seconds))
    return QuadraticRelaxation(accuracy=1e-4).maximise(problem, request, np.zeros((0, problem.rank)))


class TestQuadraticRelaxation(OracleContract):
    rtol = 1e-2
    looseness = None

    def make_oracle(self) -> QuadraticRelaxation:
        return QuadraticRelaxation()

    def make_cases(self) -> list[OracleCase]:
        return [planar_cases()[1], rank_three_cases()[1], *orthonormal_cases()]

    def make_unsupported_specs(self) -> list[BranchSpec]:
        return [*super().make_unsupported_specs(), *without_one_activation()]


class TestTightness:
    @pytest.mark.parametrize(("num_rows", "rank"), [(5, 20), (25, 100)])
    def test_few_samples(self, num_rows: int, rank: int) -> None:
        for seed in range(4):
            found = maximise(random_problem(seed, num_rows, rank))
            assert found.upper <= 1.02 * found.lower

    @pytest.mark.parametrize("size", [20, 100])
    def test_as_many_samples_as_dimensions(self, size: int) -> None:
        for seed in range(3):
            found = maximise(random_problem(seed, size, size))
            assert found.upper <= 1.2 * found.lower

    def test_orthonormal_rows_are_exact(self) -> None:
        duals = np.array([3.0, 4.0, -1.0, -2.0])
        problem = SphereProblem(rows=np.eye(4), duals=duals[:, None], linear=np.zeros((4, 1)), one_sided=True)
        assert 5.0 <= maximise(problem).upper <= 5.0 * (1 + 2e-4)

    @pytest.mark.parametrize(("num_rows", "rank"), [(4, 3), (8, 4), (15, 3), (12, 12)])
    @pytest.mark.parametrize("linear", [0.0, 1.0])
    def test_no_quadratic_majorant_is_better(self, num_rows: int, rank: int, linear: float) -> None:
        problem = random_problem(num_rows, num_rows, rank, linear=linear)
        best = quadratic_relaxation_value(problem.rows, problem.duals[:, 0], problem.linear[:, 0])
        found = maximise(problem, rtol=0.0)
        assert found.upper == pytest.approx(best, rel=5e-4)
        assert found.upper >= best * (1 - 1e-6)

    def test_time_at_two_hundred_samples(self) -> None:
        begin = time.process_time()
        maximise(random_problem(0, 200, 100), rtol=1e-2)
        assert time.process_time() - begin < 3.0

    def test_tied_parameters_cost_little(self, monkeypatch: pytest.MonkeyPatch) -> None:
        problem = random_problem(0, 120, 6)
        free = maximise(problem).upper
        monkeypatch.setattr(majorant_search, "_MAX_FREE", 20)
        monkeypatch.setattr(majorant_search, "_group_limit", lambda number, rank: min(number, 20))
        tied = maximise(problem).upper
        assert free * (1 - 1e-3) <= tied <= 1.1 * free


class TestSoundness:
    def test_planar_maxima_are_never_undercut(self) -> None:
        generator = np.random.default_rng(0)
        for seed in range(40):
            rows = generator.integers(1, 9)
            problem = random_problem(seed, int(rows), 2, linear=float(seed % 3))
            truth = exact_planar_dual_norm(problem.rows, problem.duals, problem.linear, one_sided=True)
            found = maximise(problem, rtol=1e-2)
            assert found.upper >= truth * (1 - 1e-14), seed
            assert found.lower <= truth * (1 + 1e-12), seed

    @settings(max_examples=150)
    @given(
        seed=st.integers(0, 10**6),
        num_rows=st.integers(1, 12),
        rank=st.integers(1, 5),
        inverse=st.floats(1e-9, 1e9),
        share=st.sampled_from([0.0, 1e-17, 0.3, 0.5, 1.0 - 2**-53, 1.0]),
    )
    def test_every_majorant_majorises(self, seed: int, num_rows: int, rank: int, inverse: float, share: float) -> None:
        problem = random_problem(seed, num_rows, rank, linear=1.0)
        majorant = QuadraticMajorant.of(problem, np.full(num_rows, inverse), np.full(num_rows, share))
        points = on_sphere(seed, 50, rank)
        points = np.concatenate([points, problem.rows / np.linalg.norm(problem.rows, axis=1, keepdims=True)])
        hidden = points @ problem.rows.T
        positive = problem.duals[:, 0] > 0
        constant = np.sum(problem.duals[positive, 0] ** 2 / (16 * majorant.curvatures[positive]))
        quadratic = constant + points @ problem.linear[:, 0] + hidden @ majorant.slopes + hidden**2 @ majorant.curvatures
        slack = 1e-13 * (problem.magnitude() + constant + np.abs(hidden**2 @ np.abs(majorant.curvatures)))
        assert (quadratic >= problem.values(points) - slack).all()
        assert majorant.proven_maximum() >= float(np.max(problem.values(points), initial=0.0)) - 1e-14 * problem.magnitude()
        assert majorant.proven_maximum() >= float(np.max(quadratic - 2 * slack))

    def test_one_sample_is_bounded_in_exact_arithmetic(self) -> None:
        """The maximum is lam ||x||, attained exactly by the relaxation: rounding has to be paid for."""
        generator = np.random.default_rng(0)
        for _ in range(40):
            row, dual = generator.standard_normal(4), float(generator.random() + 0.1)
            problem = SphereProblem(rows=row[None], duals=np.array([[dual]]), linear=np.zeros((4, 1)), one_sided=True)
            upper = maximise(problem, rtol=1e-2).upper
            square = Fraction(dual) ** 2 * sum((Fraction(float(v)) ** 2 for v in row), Fraction(0))
            assert Fraction(upper) ** 2 >= square

    def test_a_linear_problem_is_its_norm(self) -> None:
        linear = np.array([[3.0], [4.0]])
        problem = SphereProblem(rows=np.zeros((2, 2)), duals=np.ones((2, 1)), linear=linear, one_sided=True)
        assert 5.0 <= maximise(problem).upper <= 5.0 + 1e-9

    def test_negative_problems_have_maximum_zero(self) -> None:
        rows = np.concatenate([np.eye(3), -np.eye(3)])
        problem = SphereProblem(rows=rows, duals=-np.ones((6, 1)), linear=np.zeros((3, 1)), one_sided=True)
        assert maximise(problem).upper >= 0.0
        assert maximise(problem).lower == 0.0

    @pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e-30, 1e30, 1e140])
    def test_any_scale(self, scale: float) -> None:
        problem = random_problem(3, 6, 3)
        small = SphereProblem(rows=problem.rows, duals=scale * problem.duals, linear=problem.linear, one_sided=True)
        assert maximise(small).upper / scale == pytest.approx(maximise(problem).upper, rel=1e-6)

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


class TestSeveralOutputs:
    @pytest.mark.parametrize("num_outputs", [2, 3])
    def test_planar_norms_are_never_undercut(self, num_outputs: int) -> None:
        for seed in range(4):
            problem = random_problem(seed, 6, 2, num_outputs=num_outputs, linear=float(seed % 2))
            truth = exact_planar_dual_norm(problem.rows, problem.duals, problem.linear)
            assert maximise(problem).upper >= truth * (1 - 1e-13)
            assert bilinear_maximum(problem, deadline=Deadline()) >= truth * (1 - 1e-13)

    def test_joint_majorant_of_a_linear_map_is_its_spectral_norm(self) -> None:
        problem = SphereProblem(rows=np.zeros((1, 2)), duals=np.ones((1, 2)), linear=np.diag([3.0, 4.0]))
        assert 4.0 <= bilinear_maximum(problem, deadline=Deadline()) <= 4.0 + 1e-12


class TestSecularRoots:
    def test_where_the_derivative_is_zero(self) -> None:
        generator = np.random.default_rng(0)
        for rank in range(1, 7):
            for size in (1e-120, 1e-3, 1.0, 1e120):
                curvature = size * generator.standard_normal((rank, rank))
                curvature = curvature + curvature.T
                slope = size * generator.standard_normal(rank)
                level, offset = secular_root(curvature, slope)
                gaps = level - np.linalg.eigvalsh(curvature)
                parts = np.linalg.eigh(curvature)[1].T @ slope
                assert (gaps > 0.0).all()
                assert np.sum((0.5 * parts / gaps) ** 2) == pytest.approx(1.0, rel=1e-9)
                assert offset == pytest.approx(float(np.sum(0.25 * parts**2 / gaps)), rel=1e-9)

    def test_without_a_slope_just_above_the_largest_eigenvalue(self) -> None:
        level, offset = secular_root(np.diag([1.0, -3.0]), np.zeros(2))
        assert 1.0 < level < 1.0 + 1e-12
        assert offset == 0.0
        assert secular_root(np.zeros((2, 2)), np.zeros(2)) == (0.0, 0.0)

    def test_many_at_once(self) -> None:
        generator = np.random.default_rng(1)
        curvatures, slopes = generator.standard_normal((5, 3, 3)), generator.standard_normal((5, 3))
        curvatures = curvatures + curvatures.transpose(0, 2, 1)
        slopes[2] = 0.0
        found = np.array(secular_roots(curvatures, slopes))
        for k in range(5):
            np.testing.assert_allclose(found[:, k], secular_root(curvatures[k], slopes[k]), rtol=1e-12)
