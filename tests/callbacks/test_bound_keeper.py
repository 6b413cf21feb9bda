from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from torch_strongdual.callbacks._bound_keeper import BoundKeeper
from torch_strongdual.callbacks._objective import Objective
from torch_strongdual.callbacks._trained_objective import PathPenalty
from torch_strongdual.certification import certify
from torch_strongdual.errors import InvalidInputError, ShapeError, SoundnessError

from ..contracts.lightning_regression import PATH_DECAY, Regression, make_data

PENALTY = PathPenalty(PATH_DECAY, "product")


def make_keeper(**options: Any) -> BoundKeeper:
    inputs, targets = options.pop("data", make_data())
    return BoundKeeper(inputs, targets, nn.MSELoss(), **({"oracle": None, "rtol": 1e-2, "time_budget": 0.3} | options))


def certified(net: nn.Module, **options: Any) -> BoundKeeper:
    keeper = make_keeper(**options)
    attempt = keeper.certify(lambda: Objective.of(net, PENALTY), epoch=0)
    assert attempt.error is None
    return keeper


def test_an_attempt_says_what_certify_says() -> None:
    net = Regression().net
    attempt = make_keeper(time_budget=600.0).certify(lambda: Objective.of(net, PENALTY), epoch=7)
    direct = certify(net, *make_data(), loss=nn.MSELoss(), path_decay=PATH_DECAY, time_budget=600.0)
    assert attempt.certificate is not None
    assert attempt.certificate.dual_bound == pytest.approx(direct.dual_bound, rel=1e-6)
    assert attempt.record.epoch == 7
    assert attempt.record.primal_value == direct.primal_value == attempt.certificate.primal_value
    assert attempt.record.dual_bound == attempt.certificate.dual_bound
    assert attempt.record.relative_gap == attempt.certificate.relative_gap


def test_mistakes_show_when_prepared() -> None:
    net = Regression().net
    with pytest.raises(ShapeError):
        make_keeper(data=(make_data()[0][:5], make_data()[1])).prepare(Objective.of(net, PENALTY))
    with pytest.raises(InvalidInputError, match="`path_decay` is 0"):
        make_keeper().prepare(Objective.of(net, PathPenalty(0.0, "product")))


def test_the_solver_is_kept_until_the_problem_changes() -> None:
    keeper, net = make_keeper(), Regression().net
    first = keeper.prepare(Objective.of(net, PENALTY))
    assert first.best.value > -1e-200
    net.add_branches_([weight[:1] for weight in net.branch_weights()])
    assert keeper.prepare(Objective.of(net, PENALTY)) is first  # any number of branches
    other = keeper.prepare(Objective.of(net, PathPenalty(0.5 * PATH_DECAY, "product")))
    assert other is not first
    assert keeper.prepare(Objective.of(net, PathPenalty(0.5 * PATH_DECAY, "product"))) is other


def test_an_objective_that_cannot_be_found_is_an_error_in_the_attempt() -> None:
    def find() -> Any:
        raise LookupError("gone")

    attempt = make_keeper().certify(find, epoch=3)
    assert isinstance(attempt.error, LookupError)
    assert attempt.record.epoch == 3
    assert math.isnan(attempt.record.primal_value)
    assert attempt.record.dual_bound == -math.inf
    assert attempt.record.relative_gap == math.inf


def test_a_bound_is_taken_up_where_the_problem_is_the_same() -> None:
    net = Regression().net
    state = certified(net).state_dict()
    bound = state["solver"]["dual_bound"]
    assert bound > 0.0
    keeper = make_keeper(time_budget=1e-9)
    keeper.prepare(Objective.of(net, PENALTY))
    assert keeper.load_state_dict(copy.deepcopy(state))
    attempt = keeper.certify(lambda: Objective.of(net, PENALTY), epoch=0)
    assert attempt.record.dual_bound >= bound  # without any time to prove it


@pytest.mark.parametrize(
    "options",
    [
        {"data": make_data(seed=2)},
        {"data": tuple(part.flip(0) for part in make_data())},
    ],
)
def test_a_bound_of_other_data_is_dropped(options: dict[str, Any]) -> None:
    net = Regression().net
    state = certified(net).state_dict()
    keeper = make_keeper(**options)
    solver = keeper.prepare(Objective.of(net, PENALTY))
    assert not keeper.load_state_dict(state)
    assert solver.best.value <= 0.0


@pytest.mark.parametrize("damage", ["solver", "dual_point", "evidence", "empty", "nan"])
def test_a_state_that_is_damaged_is_dropped(damage: str) -> None:
    net = Regression().net
    state = certified(net).state_dict()
    if damage == "empty":
        state = {}
    elif damage == "solver":
        state["solver"] = None
    elif damage == "nan":
        state["solver"]["dual_bound"] = math.nan
    else:
        del state["solver"][damage]
    keeper = make_keeper()
    keeper.prepare(Objective.of(net, PENALTY))
    assert not keeper.load_state_dict(state)
    assert keeper.prepare(Objective.of(net, PENALTY)).best.value <= 0.0


def test_a_stored_bound_that_is_too_high_is_refuted() -> None:
    net = Regression().net
    state = certified(net).state_dict()
    state["solver"]["dual_bound"] = 1e6
    keeper = make_keeper()
    keeper.prepare(Objective.of(net, PENALTY))
    assert keeper.load_state_dict(state)
    attempt = keeper.certify(lambda: Objective.of(net, PENALTY), epoch=0)
    assert isinstance(attempt.error, SoundnessError)
    assert attempt.certificate is None
    assert attempt.record.dual_bound <= 0.0


def test_before_it_is_prepared_there_is_no_state() -> None:
    assert make_keeper().state_dict() == {}
    assert not make_keeper().load_state_dict({"fingerprint": "", "solver": {}})


def test_non_finite_weights_leave_the_bound() -> None:
    net = Regression().net
    keeper = certified(net)
    bound = keeper.state_dict()["solver"]["dual_bound"]
    with torch.no_grad():
        net.branch_weights()[-1].fill_(math.inf)
    attempt = keeper.certify(lambda: Objective.of(net, PENALTY), epoch=1)
    assert attempt.record.dual_bound == bound
    assert attempt.record.relative_gap == 1.0
    assert not math.isfinite(attempt.record.primal_value)
