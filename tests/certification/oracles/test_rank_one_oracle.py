from __future__ import annotations

import math

import numpy as np
import torch

from tests.contracts.oracle_cases import OracleCase, bent_spec, planar_cases, rank_one_cases, without_one_activation
from tests.contracts.oracle_contract import OracleContract
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.rank_one_oracle import RankOneOracle
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem
from torch_strongdual.nn.branch_spec import BranchSpec


class TestRankOneOracle(OracleContract):
    def make_oracle(self) -> RankOneOracle:
        return RankOneOracle()

    def make_cases(self) -> list[OracleCase]:
        cases = rank_one_cases()
        t, duals = cases[0].inputs[:, :1], cases[0].dual_point
        leaky = [float(torch.linalg.norm(duals.T @ torch.where(s * t > 0, s * t, 0.3 * s * t))) for s in (1, -1)]
        return [
            *cases,
            OracleCase(name="leaky", spec=bent_spec(1, 2, 1, slope=0.3), inputs=t, dual_point=duals, truth=max(leaky)),
        ]

    def make_unsupported_specs(self) -> list[BranchSpec]:
        return [*super().make_unsupported_specs(), *without_one_activation()]

    def test_higher_rank_proves_nothing_and_says_so(self) -> None:
        found = self.bound(planar_cases()[0])
        assert found.upper == math.inf
        assert "rank 2" in str(found.stats["limited_by"])

    def test_one_sided_maximum_is_never_negative(self) -> None:
        problem = SphereProblem(rows=np.ones((2, 1)), duals=-np.ones((2, 1)), linear=np.zeros((1, 1)), one_sided=True)
        found = RankOneOracle().maximise(problem, BoundRequest(deadline=Deadline()), np.zeros((0, 1)))
        assert 0.0 <= found.upper < 1e-13
        assert len(found.points) == 0
