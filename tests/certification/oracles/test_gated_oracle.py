from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.contracts.oracle_cases import OracleCase, bent_spec, gated_cases, gated_spec, linear_cases
from tests.contracts.oracle_contract import OracleContract
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles import abstract_spectral_oracle as spectral
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.gated_oracle import GatedOracle
from torch_strongdual.nn.branch_spec import BranchActivation, BranchSpec


class TestGatedOracle(OracleContract):
    def make_oracle(self) -> GatedOracle:
        return GatedOracle()

    def make_cases(self) -> list[OracleCase]:
        return [*gated_cases(), linear_cases()[1]]

    def make_unsupported_specs(self) -> list[BranchSpec]:
        relu_behind_gate = BranchActivation(negative_slope=0.0, gate_vectors=(torch.ones(1, 3),))
        mixed = BranchSpec(widths=(3, 2, 1), activations=(relu_behind_gate,))
        return [*super().make_unsupported_specs(), bent_spec(3, 2, 1), mixed]

    def test_equal_gates_are_bounded_once(self) -> None:
        gates = torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [3.0, 0.0]])
        oracle = GatedOracle()
        state = oracle.init(gated_spec(2, 1, 1, gates=(gates,)), torch.tensor([[1.0, 1.0], [-2.0, 3.0]]))
        assert state.gates is not None
        assert state.gates.first_branches == (0, 2)

    def test_gates_stay_when_the_data_change_afterwards(self) -> None:
        case = gated_cases()[0]
        inputs = case.inputs.clone()
        oracle = GatedOracle()
        state = oracle.init(case.spec, inputs)
        before = oracle.bound(state, case.dual_point, self.request()).upper
        for activation in case.spec.activations:
            for gate in activation.gate_vectors:
                gate.neg_()
        assert oracle.bound(state, case.dual_point, self.request()).upper == before

    def test_gates_closed_everywhere(self) -> None:
        inputs = torch.rand(5, 2).double() + 0.1
        spec = gated_spec(2, 1, 1, gates=(-torch.ones(3, 2),))
        found = self.bound(OracleCase(name="", spec=spec, inputs=inputs, dual_point=torch.ones(5, 1).double()))
        assert 0.0 <= found.upper < 1e-12
        assert found.lower == 0.0
        assert found.witnesses == ()

    @pytest.mark.parametrize("target", [None, 1e-3])
    def test_gates_not_looked_at_are_covered(self, monkeypatch: pytest.MonkeyPatch, target: float | None) -> None:
        """Time is up, or a counterexample was found, after the first of many chunks: still a finite bound above the truth."""
        monkeypatch.setattr(spectral, "_CHUNK", 1)
        for case in gated_cases():
            oracle = GatedOracle()
            state = oracle.init(case.spec, case.inputs)
            deadline = Deadline(0.0 if target is None else math.inf)
            found = oracle.bound(state, case.dual_point, BoundRequest(target=target, deadline=deadline))
            assert case.truth is not None
            assert case.truth <= found.upper < 100 * case.truth
            assert found.stats["limited_by"]

    def test_chunks_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for case in gated_cases():
            whole = self.bound(case)
            with monkeypatch.context() as patch:
                patch.setattr(spectral, "_CHUNK", 1)
                assert self.bound(case).upper == pytest.approx(whole.upper, rel=1e-12)

    def test_a_decomposition_that_fails_leaves_a_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise np.linalg.LinAlgError("SVD did not converge")

        cases = gated_cases()
        monkeypatch.setattr(np.linalg, "svd", fail)
        for case in cases:
            found = self.bound(case)
            assert case.truth is not None
            assert case.truth <= found.upper <= 2 * case.truth
            assert found.witnesses == ()
