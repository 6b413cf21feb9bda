from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from tests.contracts.oracle_cases import (
    OracleCase,
    bent_spec,
    planar_cases,
    rank_one_cases,
    rank_three_cases,
    without_one_activation,
)
from tests.contracts.oracle_contract import OracleContract
from tests.references.planar import exact_planar_dual_norm
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.angular_sweep_oracle import AngularSweepOracle
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem
from torch_strongdual.nn.branch_spec import BranchSpec


def sweep(problem: SphereProblem) -> SphereBound:
    return AngularSweepOracle().maximise(problem, BoundRequest(deadline=Deadline()), np.zeros((0, problem.rank)))


class TestAngularSweepOracle(OracleContract):
    def make_oracle(self) -> AngularSweepOracle:
        return AngularSweepOracle()

    def make_cases(self) -> list[OracleCase]:
        return [*planar_cases(), rank_one_cases()[1]]

    def make_unsupported_specs(self) -> list[BranchSpec]:
        return [*super().make_unsupported_specs(), *without_one_activation()]

    def test_higher_rank_proves_nothing_and_says_so(self) -> None:
        found = self.bound(rank_three_cases()[0])
        assert found.upper == math.inf
        assert "rank 3" in str(found.stats["limited_by"])

    @pytest.mark.parametrize("one_sided", [False, True])
    def test_rows_on_few_angles(self, one_sided: bool) -> None:
        """Many rows switch at the same angle, and half of the arcs have no width."""
        generator = np.random.default_rng(0)
        directions = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1], [0, 0], [1, 1]])
        for _ in range(20):
            rows = directions[generator.integers(0, 6, 30)] * generator.integers(1, 4, (30, 1)).astype(float)
            duals, linear = generator.standard_normal((30, 1)), generator.standard_normal((2, 1))
            problem = SphereProblem(rows=rows, duals=duals, linear=linear, one_sided=one_sided)
            found = sweep(problem)
            truth = exact_planar_dual_norm(rows, duals, linear, one_sided=one_sided)
            assert truth * (1 - 1e-13) <= found.upper <= truth + 1e-12 * problem.magnitude()
            assert found.lower == pytest.approx(truth, rel=1e-9, abs=1e-12)

    def test_no_rows_leave_the_linear_part(self) -> None:
        linear = np.array([[3.0, 0.0], [0.0, 4.0]])
        found = sweep(SphereProblem(rows=np.zeros((3, 2)), duals=np.ones((3, 2)), linear=linear))
        assert 4.0 <= found.upper < 4.0 + 1e-11
        assert abs(found.points[0, 1]) == pytest.approx(1.0)

    def test_one_sided_maximum_is_never_negative(self) -> None:
        rows = np.random.default_rng(0).standard_normal((5, 2))
        around = np.concatenate([rows, -rows])
        found = sweep(SphereProblem(rows=around, duals=-np.ones((10, 1)), linear=np.zeros((2, 1)), one_sided=True))
        assert 0.0 <= found.upper < 1e-12
        assert len(found.points) == 0

    def test_points_are_distinct_local_maxima(self) -> None:
        rows = np.array([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]])
        problem = SphereProblem(rows=rows, duals=np.ones((3, 1)), linear=np.zeros((2, 1)), one_sided=True)
        found = sweep(problem)
        values = problem.values(found.points)
        assert len(values) >= 3
        assert list(values) == sorted(values, reverse=True)
        turned = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in (1e-4, -1e-4)]
        assert all((problem.values(found.points @ t) <= values + 1e-12).all() for t in turned)

    @pytest.mark.parametrize("num_outputs", [1, 10])
    def test_a_hundred_thousand_rows(self, num_outputs: int) -> None:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(100_000, 2, generator=generator).double()
        duals = torch.randn(100_000, num_outputs, generator=generator).double()
        oracle = AngularSweepOracle()
        state = oracle.init(bent_spec(2, 1, num_outputs), inputs)
        begin = time.process_time()
        found = oracle.bound(state, duals, BoundRequest(deadline=Deadline(10.0)))
        assert time.process_time() - begin < 3.0
        assert found.lower > 0.0
        assert found.ratio < 1 + 1e-7
