from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torch_strongdual.certification._dual.abstract_joint_candidate import JointSituation
from torch_strongdual.certification._dual.mixtures import Mixtures, Plan, SearchCost

NEAR, SETTLED = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]])


def value_along(point: Tensor) -> Callable[[float], float]:
    """Worth more the nearer to the residual, and the smaller the bound."""
    worth = float(point[1])
    return lambda upper: worth / max(upper, 1e-9)


def situation(sufficient: float = 0.0) -> JointSituation:
    return JointSituation(attainable=math.inf, near=NEAR, sufficient=lambda candidate: sufficient)


def begun(seconds: float = 1.0) -> Mixtures:
    """With the first search over, after so many seconds."""
    mixtures = Mixtures(value_along, 1.0)
    first = mixtures.next_plan(SETTLED, situation(), seconds=1e3)
    assert first is not None
    mixtures.learn(first, upper=1.5, lower=1.0, seconds=seconds, is_met=True)
    return mixtures


def planned(mixtures: Mixtures, seconds: float, sufficient: float = 0.0) -> Plan:
    plan = mixtures.next_plan(SETTLED, situation(sufficient), seconds=seconds)
    assert plan is not None
    return plan


def test_a_coarse_search_of_the_settled_point_comes_first_if_something_can_follow() -> None:
    mixtures = Mixtures(value_along, 1.0)
    assert mixtures.next_plan(SETTLED, situation(), seconds=0.1) is None
    first = planned(mixtures, 1e3)
    assert torch.equal(first.point, SETTLED)
    assert first.rtol >= 0.3
    assert first.value == -math.inf


def test_beyond_rank_ten_the_first_search_is_closer_and_needs_more_time_after_it() -> None:
    mixtures = Mixtures(value_along, 1.0, rank=12)
    assert mixtures.next_plan(SETTLED, situation(), seconds=20.0) is None
    assert planned(mixtures, 60.0).rtol < planned(Mixtures(value_along, 1.0, rank=10), 60.0).rtol


def test_more_time_is_for_points_nearer_to_the_residual_or_closer_bounds() -> None:
    plans = [planned(begun(), seconds) for seconds in (3.0, 7.0, 15.0, 30.0)]
    values = [plan.value for plan in plans]
    assert values == sorted(set(values))
    assert plans[0].share > plans[-1].share
    for plan in plans:
        assert torch.allclose(plan.point, NEAR + plan.share * (SETTLED - NEAR))
        assert plan.value == pytest.approx(value_along(plan.point)(1.0 + plan.rtol), rel=1e-6)


def test_the_same_time_promises_less_where_the_first_search_was_slower() -> None:
    values = [planned(begun(seconds), 20.0).value for seconds in (0.1, 1.0, 4.0)]
    assert values == sorted(values, reverse=True)


def test_what_is_too_far_from_what_was_searched_is_left_until_more_is_known() -> None:
    mixtures = begun(0.5)
    near = planned(mixtures, 1e9)
    assert near.value == planned(mixtures, 15.0).value
    mixtures.learn(near, upper=1.0 + near.rtol, lower=1.0, seconds=15.0, is_met=True)
    assert planned(mixtures, 1e9).value > near.value


def test_points_come_nearer_to_the_residual_by_half_at_most() -> None:
    mixtures, shares = begun(20.0), [1.0]
    for _ in range(3):
        plan = planned(mixtures, 1e9)
        assert plan.share >= 0.5 * shares[-1]
        mixtures.learn(plan, upper=1.0 + plan.rtol, lower=1.0, seconds=21.0, is_met=True)
        shares.append(plan.share)
    assert shares[-1] <= 0.15


def test_without_time_for_any_search_there_is_none() -> None:
    assert begun().next_plan(SETTLED, situation(), seconds=0.1) is None


def test_what_is_enough_is_not_exceeded_and_comes_as_fast_as_possible() -> None:
    most = planned(begun(), 30.0)
    enough = planned(begun(), 30.0, sufficient=1.9)  # of the residual
    assert value_along(NEAR)(1.9) <= enough.value < most.value


def test_a_search_that_ran_out_of_time_is_gone_on_with() -> None:
    mixtures = begun()
    plan = planned(mixtures, 30.0)
    mixtures.learn(plan, upper=3.0, lower=1.0, seconds=29.0, is_met=False)
    again = planned(mixtures, 40.0)
    assert again.point is plan.point
    assert again.rtol == plan.rtol


def test_what_is_proven_is_not_proven_again() -> None:
    mixtures, seen = begun(), set()
    while (plan := mixtures.next_plan(SETTLED, situation(), seconds=50.0)) is not None:
        assert (plan.share, plan.rtol) not in seen
        seen.add((plan.share, plan.rtol))
        mixtures.learn(plan, upper=(1.0 + plan.rtol) * 1.2, lower=1.2, seconds=10.0, is_met=True)


def test_costs_are_learnt_from_searches() -> None:
    cost = SearchCost()
    for share, rtol in ((1.0, 0.5), (0.6, 0.1), (0.4, 0.05), (0.7, 0.02)):
        seconds = 0.2 * ((rtol + 0.2) / 0.9) ** -1.9 * math.exp(3.3 * (1.0 - share))
        cost.learn(share=share, rtol=rtol, seconds=seconds)
    expected = 0.2 * (0.205 / 0.9) ** -1.9 * math.exp(3.3 * 0.8)
    assert 0.9 * expected < cost.cautious(share=0.2, rtol=0.005) < 1.3 * expected


def test_each_rank_beyond_ten_is_expected_to_cost_more() -> None:
    costs = [SearchCost(rank).cautious(share=0.8, rtol=0.05) for rank in (9, 10, 11, 12)]
    assert costs[0] == costs[1]
    assert 2.0 * costs[1] < costs[2] < 0.5 * costs[3]
