from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.contracts.oracle_cases import (
    OracleCase,
    bent_spec,
    gated_cases,
    linear_cases,
    linear_spec,
    planar_cases,
    rank_one_cases,
)
from tests.contracts.oracle_contract import OracleContract
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.dual_norm_bound import DualNormBound, Witness
from torch_strongdual.certification.oracles.abstract_oracle import AbstractDualNormOracle, BoundRequest
from torch_strongdual.certification.oracles.angular_sweep_oracle import AngularSweepOracle
from torch_strongdual.certification.oracles.composition import FirstTight, Tightest
from torch_strongdual.certification.oracles.gated_oracle import GatedOracle
from torch_strongdual.certification.oracles.linear_oracle import LinearOracle
from torch_strongdual.certification.oracles.local_search import LocalSearch
from torch_strongdual.certification.oracles.rank_one_oracle import RankOneOracle
from torch_strongdual.errors import InvalidInputError, UnsupportedModelError
from torch_strongdual.nn.branch_spec import BranchSpec


def family() -> list[AbstractDualNormOracle]:
    return [LinearOracle(), GatedOracle(), RankOneOracle(), AngularSweepOracle()]


def mixed_cases() -> list[OracleCase]:
    return [linear_cases()[0], gated_cases()[1], *rank_one_cases()[1:], *planar_cases()[1:]]


class TestFirstTight(OracleContract):
    def make_oracle(self) -> FirstTight:
        return FirstTight(family())

    def make_cases(self) -> list[OracleCase]:
        return mixed_cases()

    def make_unsupported_specs(self) -> list[BranchSpec]:
        return [*super().make_unsupported_specs(), bent_spec(3, 2, 2, 1)]


class TestTightest(OracleContract):
    def make_oracle(self) -> Tightest:
        return Tightest([LocalSearch(num_starts=4, num_steps=4), *family()])

    def make_cases(self) -> list[OracleCase]:
        return mixed_cases()


class Scripted(AbstractDualNormOracle):
    """Answers what it was told to, and writes down what it was asked."""

    def __init__(self, upper: float, lower: float, *, reason: str | None = None, limited_by: str | None = None) -> None:
        self.upper, self.lower, self.reason, self.limited_by = upper, lower, reason, limited_by
        self.requests: list[BoundRequest] = []
        self.remaining: list[float] = []
        self.prepared = 0

    def supports(self, spec: BranchSpec) -> str | None:
        return self.reason

    def init(self, spec: BranchSpec, inputs: Tensor) -> int:
        self.prepared += 1
        return self.prepared

    def bound(self, state: int, dual_point: Tensor, request: BoundRequest) -> DualNormBound:
        self.requests.append(request)
        self.remaining.append(request.deadline.remaining)
        weights = torch.tensor([[self.lower, 1.0]]).double()
        witness = Witness(weights=(weights / weights.norm(), torch.ones(1, 1).double()), value=self.lower)
        stats = {} if self.limited_by is None else {"limited_by": self.limited_by}
        return DualNormBound(upper=self.upper, lower=self.lower, witnesses=(witness,), stats=stats)


def ask(
    oracle: FirstTight | Tightest, *, rtol: float = 0.01, target: float | None = None, seconds: float = math.inf
) -> DualNormBound:
    state = oracle.init(linear_spec(2, 1, 1), torch.eye(2))
    request = BoundRequest(rtol=rtol, target=target, deadline=Deadline(seconds))
    return oracle.bound(state, torch.ones(2, 1).double(), request)


def test_first_tight_stops_at_the_first_answer() -> None:
    members = [Scripted(5.0, 1.0), Scripted(1.005, 1.0), Scripted(1.0, 1.0)]
    found = ask(FirstTight(members))
    assert [len(m.requests) for m in members] == [1, 1, 0]
    assert [m.prepared for m in members] == [1, 1, 0]
    assert (found.upper, found.lower, found.stats["ran"]) == (1.005, 1.0, "Scripted, Scripted")


def test_first_tight_combines_one_members_upper_with_anothers_lower() -> None:
    members = [Scripted(2.0, 0.5), Scripted(9.0, 1.99), Scripted(1.0, 1.0)]
    found = ask(FirstTight(members))
    assert (found.upper, found.lower) == (2.0, 1.99)
    assert members[2].requests == []
    assert members[1].requests[0].floor == pytest.approx(0.5 * 1.01)


@pytest.mark.parametrize(("target", "asked"), [(3.0, 1), (0.5, 1), (1.5, 2)])
def test_first_tight_stops_when_the_target_is_decided(target: float, asked: int) -> None:
    members = [Scripted(2.9, 1.0), Scripted(1.0, 1.0)]
    ask(FirstTight(members), target=target)
    assert sum(len(m.requests) for m in members) == asked


def test_tightest_asks_all_and_keeps_the_best_of_each() -> None:
    members = [Scripted(3.0, 1.0), Scripted(2.0, 0.5, limited_by="time"), Scripted(4.0, 1.5)]
    found = ask(Tightest(members))
    assert (found.upper, found.lower) == (2.0, 1.5)
    assert [w.value for w in found.witnesses] == [1.5, 1.0, 0.5]
    assert found.stats["limited_by"] == "time"


@pytest.mark.parametrize("kind", [FirstTight, Tightest])
def test_time_is_shared(kind: type[FirstTight] | type[Tightest]) -> None:
    members = [Scripted(math.inf, 0.1), Scripted(math.inf, 0.1), Scripted(math.inf, 0.1)]
    ask(kind(members), seconds=90.0)
    assert [m.remaining[0] for m in members] == pytest.approx([30.0, 45.0, 90.0], abs=2.0)


@pytest.mark.parametrize("kind", [FirstTight, Tightest])
def test_members_that_do_not_support_the_branch_are_never_prepared(kind: type[FirstTight] | type[Tightest]) -> None:
    members = [Scripted(1.0, 1.0, reason="not mine"), Scripted(2.0, 2.0)]
    found = ask(kind(members))
    assert members[0].prepared == 0
    assert found.upper == 2.0
    with pytest.raises(UnsupportedModelError, match="not mine; nor mine"):
        ask(kind([members[0], Scripted(1.0, 1.0, reason="nor mine")]))


@pytest.mark.parametrize("kind", [FirstTight, Tightest])
def test_where_nothing_is_proven_every_reason_is_given(kind: type[FirstTight] | type[Tightest]) -> None:
    found = ask(kind([Scripted(math.inf, 0.0, limited_by="rank 7"), Scripted(math.inf, 0.0)]))
    assert found.upper == math.inf
    assert "rank 7" in str(found.stats["limited_by"])


def test_members_are_prepared_once_a_run() -> None:
    member = Scripted(2.0, 1.0)
    oracle = Tightest([member])
    state = oracle.init(linear_spec(2, 1, 1), torch.eye(2))
    for _ in range(3):
        oracle.bound(state, torch.ones(2, 1).double(), BoundRequest(deadline=Deadline()))
    assert member.prepared == 1


def test_equal_witnesses_are_kept_once() -> None:
    found = ask(Tightest([Scripted(2.0, 1.0), Scripted(2.0, 1.0)]))
    assert len(found.witnesses) == 1


@pytest.mark.parametrize("kind", [FirstTight, Tightest])
def test_no_members_are_refused(kind: type[FirstTight] | type[Tightest]) -> None:
    with pytest.raises(InvalidInputError, match="`oracles` is empty"):
        kind([])


def test_data_changed_after_init_change_nothing() -> None:
    case = planar_cases()[0]
    inputs = case.inputs.clone()
    oracle = FirstTight([AngularSweepOracle()])
    state = oracle.init(case.spec, inputs)
    inputs.mul_(0.1)
    found = oracle.bound(state, case.dual_point, BoundRequest(deadline=Deadline()))
    assert found.upper == pytest.approx(case.truth, rel=1e-9)
