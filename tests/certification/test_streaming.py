"""Large data are worked on block by block: the same numbers, in their own dtype, without a second copy of them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.certification import Deadline, TrainingProblem
from torch_strongdual.certification.oracles import AbstractDualNormOracle, BoundRequest, GatedOracle, LinearOracle
from torch_strongdual.certification.oracles import abstract_spectral_oracle as spectral
from torch_strongdual.functional import _row_blocks
from torch_strongdual.nn import BranchSpec, GatedReLU, ParallelNet, ParallelWeights

NUM_SAMPLES, FEATURES, OUTPUTS, BRANCHES = 300, 6, 3, 7


def network(*, gated: bool, bias: bool) -> ParallelNet:
    torch.manual_seed(0)
    layers = [nn.Linear(FEATURES, 4, bias=bias), *([GatedReLU(FEATURES)] if gated else [])]
    return ParallelNet(*layers, nn.Linear(4, OUTPUTS, bias=bias), num_branches=BRANCHES)


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(NUM_SAMPLES, FEATURES, generator=generator), torch.randn(NUM_SAMPLES, OUTPUTS, generator=generator)


def oracle_for(gated: bool) -> AbstractDualNormOracle:
    return GatedOracle() if gated else LinearOracle()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_row_blocks, "_NUMBERS", 100)
    monkeypatch.setattr(spectral, "_CHUNK", 50)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.usefixtures("small_blocks")
def test_blocks_give_the_truth(gated: bool, bias: bool) -> None:
    net, (inputs, targets) = network(gated=gated, bias=bias), data()
    problem = TrainingProblem.from_model(net, inputs, targets, loss=nn.MSELoss(), path_decay=0.1)
    weights = ParallelWeights.from_module(net)
    primal = problem.primal(weights)
    with torch.no_grad():
        double = net.double()
        objective = nn.MSELoss()(double(inputs.double()), targets.double()) + 0.1 * double.path_penalty().sum()
    assert objective.item() <= primal.value <= objective.item() * (1.0 + 1e-10)

    oracle, duals = oracle_for(gated), torch.randn(NUM_SAMPLES, OUTPUTS, dtype=torch.float64)
    found = oracle.bound(oracle.init(problem.spec, inputs), duals, BoundRequest(deadline=Deadline()))
    matrix = problem.spec.branch_inputs(inputs).numpy()
    masks = problem.spec.gate_masks(inputs)
    gates = np.ones((1, NUM_SAMPLES)) if masks is None else masks.numpy()
    truth = max(float(np.linalg.norm(matrix.T @ (gate[:, None] * duals.numpy()), 2)) for gate in gates)
    assert truth * (1.0 - 1e-13) <= found.lower * (1.0 + 1e-13)
    assert truth <= found.upper <= truth * (1.0 + 1e-10)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.usefixtures("small_blocks")
def test_data_are_neither_copied_nor_converted_as_a_whole(monkeypatch: pytest.MonkeyPatch, gated: bool) -> None:
    net, (inputs, targets) = network(gated=gated, bias=True), data()
    rows_seen: list[int] = []
    convert = BranchSpec.branch_inputs

    def noting(spec: BranchSpec, part: Tensor) -> Tensor:
        rows_seen.append(len(part))
        return convert(spec, part)

    monkeypatch.setattr(BranchSpec, "branch_inputs", noting)
    problem = TrainingProblem.from_model(net, inputs, targets, loss=nn.MSELoss(), path_decay=0.1)
    assert problem.inputs.data_ptr() == inputs.data_ptr()
    oracle = oracle_for(gated)
    state = oracle.init(problem.spec, problem.inputs)
    assert state.inputs.data_ptr() == inputs.data_ptr()
    assert state.inputs.dtype == torch.float32
    primal = problem.primal(ParallelWeights.from_module(net))
    found = oracle.bound(state, problem.dual_candidate(primal.outputs), BoundRequest(deadline=Deadline()))
    problem.scaled_bound(problem.dual_candidate(primal.outputs), found.upper)
    assert rows_seen
    assert max(rows_seen) <= 100 // FEATURES


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.usefixtures("small_blocks")
def test_time_that_runs_out_between_blocks_leaves_a_bound(gated: bool) -> None:
    net, (inputs, _) = network(gated=gated, bias=False), data()
    oracle, duals = oracle_for(gated), torch.randn(NUM_SAMPLES, OUTPUTS, dtype=torch.float64)
    state = oracle.init(net.branch_spec, inputs)
    exact = oracle.bound(state, duals, BoundRequest(deadline=Deadline()))
    late = oracle.bound(state, duals, BoundRequest(deadline=Deadline(0.0)))
    assert exact.upper <= late.upper < math.inf
    assert "time" in str(late.stats["limited_by"])
    assert late.witnesses == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.usefixtures("small_blocks")
def test_one_bad_number_in_any_block_proves_nothing(gated: bool, bad: float) -> None:
    net, (inputs, _) = network(gated=gated, bias=False), data()
    oracle = oracle_for(gated)
    for row in (0, NUM_SAMPLES // 2, NUM_SAMPLES - 1):
        spoilt = inputs.clone()
        spoilt[row, 0] = bad
        duals = torch.ones(NUM_SAMPLES, OUTPUTS, dtype=torch.float64)
        found = oracle.bound(oracle.init(net.branch_spec, spoilt), duals, BoundRequest(deadline=Deadline()))
        assert found.upper == math.inf


@pytest.mark.usefixtures("small_blocks")
def test_rounding_of_blocked_sums_is_paid_for() -> None:
    """Numbers that cancel across blocks: what float64 loses on the way stays below the allowance."""
    generator = np.random.default_rng(0)
    half = generator.standard_normal((NUM_SAMPLES // 2, 1)) * 10.0 ** generator.integers(0, 12, (NUM_SAMPLES // 2, 1))
    small = generator.standard_normal((5, 1))
    matrix = generator.permutation(np.concatenate([half, -half, small]))
    duals = np.ones_like(matrix)
    truth = abs(math.fsum(small.ravel()))
    spec = dataclasses.replace(network(gated=False, bias=False).branch_spec, widths=(1, 4, 1))
    oracle = LinearOracle()
    state = oracle.init(spec, torch.from_numpy(matrix))
    found = oracle.bound(state, torch.from_numpy(duals), BoundRequest(deadline=Deadline()))
    assert truth <= found.upper


def test_gates_agree_whatever_part_of_the_samples_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On hyperplanes of their gates, where rounding decides: blocks of the evaluation have the signs of the whole."""
    monkeypatch.setattr(_row_blocks, "_NUMBERS", 1000)
    torch.manual_seed(3)
    net = ParallelNet(nn.Linear(50, 1), GatedReLU(50), nn.Linear(1, 1), num_branches=9)
    gate = net.branch_spec.activations[0].gate_vectors[0]
    inputs = torch.randn(200, 50, dtype=torch.float64)
    inputs -= (inputs @ gate[0])[:, None] * gate[0] / gate[0].square().sum()
    whole = net.branch_spec.gate_masks(inputs)
    assert whole is not None
    assert 0 < whole[0].sum() < 200
    for rows in _row_blocks.row_blocks(200, net.branch_spec.gate_row_numbers):
        part = net.branch_spec.gate_masks(inputs[rows])
        assert part is not None
        assert torch.equal(part, whole[:, rows])
