from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from torch_strongdual.certification import Deadline, TrainingProblem
from torch_strongdual.certification._dual.dual_state import DualState
from torch_strongdual.certification._dual.solver_run import SolverRun
from torch_strongdual.certification.certificate import DualBound
from torch_strongdual.certification.oracles import LinearOracle
from torch_strongdual.errors import SoundnessError
from torch_strongdual.nn import ParallelNet, ParallelWeights


def make() -> tuple[DualState, ParallelWeights]:
    """Two samples on the axes, one target: the optimum of the linear net is 7/8."""
    torch.manual_seed(0)
    net = ParallelNet(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False), num_branches=3)
    inputs, targets = torch.eye(2), torch.tensor([[2.0], [0.0]])
    problem = TrainingProblem.from_model(net, inputs, targets, loss=nn.MSELoss(), path_decay=0.5)
    state = DualState(problem, LinearOracle())
    state.prepare()
    return state, ParallelWeights.from_module(net)


def test_a_run_adds_to_the_state_and_returns_what_holds_of_its_network() -> None:
    state, weights = make()
    primal = state.problem.primal(weights)
    result = SolverRun(state, primal, 1e-3, Deadline(30.0)).execute(weights, 40)
    assert 0.87 < state.best.value <= 0.875 <= state.attainable <= primal.value
    assert state.certifies(0.8751, 1e-2)
    assert not state.certifies(primal.value, 1e-3)
    assert result.improving_branches
    assert result.stats["attainable_objective"] == state.attainable


def test_a_bound_above_what_is_attained_is_withdrawn() -> None:
    state, _ = make()
    state.offer(DualBound(value=0.9, dual_point=None, dual_norm_upper=0.0), {})
    state.check_sound(0.9)
    with pytest.raises(SoundnessError, match="bug in the bound") as caught:
        state.check_sound(math.nextafter(0.9, 0.0))
    assert caught.value.dual_bound == 0.9
    assert state.best.value == -math.inf


def test_the_zero_net_is_attained_too() -> None:
    """Its objective is the mean square of the targets: 2."""
    state, _ = make()
    state.offer(DualBound(value=2.1, dual_point=None, dual_norm_upper=0.0), {})
    with pytest.raises(SoundnessError):
        state.check_sound(math.inf)
