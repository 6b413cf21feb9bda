from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from tests.contracts.oracle_cases import OracleCase, bent_spec, gated_spec, linear_cases, linear_spec
from tests.contracts.oracle_contract import OracleContract
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.linear_oracle import LinearOracle
from torch_strongdual.nn.branch_spec import BranchSpec


class TestLinearOracle(OracleContract):
    def make_oracle(self) -> LinearOracle:
        return LinearOracle()

    def make_cases(self) -> list[OracleCase]:
        return linear_cases()

    def make_unsupported_specs(self) -> list[BranchSpec]:
        gates = (torch.ones(1, 3),)
        return [*super().make_unsupported_specs(), bent_spec(3, 2, 1), gated_spec(3, 2, 1, gates=gates)]

    def test_every_close_singular_vector_is_a_witness(self) -> None:
        case = OracleCase(
            name="",
            spec=linear_spec(4, 2, 4),
            inputs=torch.eye(4),
            dual_point=torch.diag(torch.tensor([3.0, 3.0, 2.9, 1.0])).double(),
        )
        found = self.bound(case)
        assert [w.value for w in found.witnesses] == pytest.approx([3.0, 3.0, 2.9])
        first = torch.stack([w.weights[0][0] for w in found.witnesses])
        assert torch.allclose(first @ first.T, torch.eye(3).double(), atol=1e-12)

    def test_cancellation_is_paid_for(self) -> None:
        """``X'Lam`` is zero in floating point but not in truth: the bound stays above it."""
        inputs = torch.tensor([[1.0], [1e17], [-1e17]]).double()
        found = self.bound(OracleCase(name="", spec=linear_spec(1, 1, 1), inputs=inputs, dual_point=torch.ones(3, 1).double()))
        assert found.upper >= 1.0
        assert found.upper <= 1e3

    @pytest.mark.parametrize("exponents", [(-1000, -60), (-600, -500), (900, -1060)])
    def test_products_near_the_smallest_number_are_rounded_up(self, exponents: tuple[int, int]) -> None:
        inputs, duals = (torch.full((2, 1), 1.5 * 2.0**e, dtype=torch.float64) for e in exponents)
        found = self.bound(OracleCase(name="", spec=linear_spec(1, 1, 1), inputs=inputs, dual_point=duals))
        exact = math.ldexp(4.5, sum(exponents))
        assert found.upper > 0.0
        assert found.upper >= exact
        assert found.lower <= exact

    def test_products_beyond_the_largest_number_prove_nothing(self) -> None:
        huge = torch.full((2, 1), 1e200, dtype=torch.float64)
        assert self.bound(OracleCase(name="", spec=linear_spec(1, 1, 1), inputs=huge, dual_point=huge)).upper == math.inf

    def test_large_data_take_a_moment(self) -> None:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(20_000, 200, generator=generator).double()
        duals = torch.randn(20_000, 10, generator=generator).double()
        oracle = LinearOracle()
        state = oracle.init(linear_spec(200, 5, 10), inputs)
        begin = time.process_time()
        found = oracle.bound(state, duals, BoundRequest(deadline=Deadline(10.0)))
        assert time.process_time() - begin < 1.0
        assert found.ratio < 1 + 1e-7
        truth = float(np.linalg.svd(inputs.numpy().T @ duals.numpy(), compute_uv=False)[0])
        assert found.lower == pytest.approx(truth, rel=1e-9)
        assert found.upper >= truth * (1 - 1e-12)
