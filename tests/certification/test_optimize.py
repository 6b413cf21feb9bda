from __future__ import annotations

import dataclasses
import importlib
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tests._cpu_clock import count_cpu_time
from tests.properties.test_certificate_soundness import LOSSES, Drawn, draw
from torch_strongdual.certification import (
    CertificateStatus,
    Deadline,
    DualBound,
    DualSolver,
    OptimizationResult,
    OptimizationStop,
    TrainingProblem,
    certify,
    max_path_decay,
    optimize_to_certificate,
)
from torch_strongdual.certification._growth import best_step, grown, random_branches
from torch_strongdual.certification._training.local_descent import descend
from torch_strongdual.certification._training.refit import merged, refitted
from torch_strongdual.certification._working_branches import WorkingBranches
from torch_strongdual.certification.dual_norm_bound import DualNormBound
from torch_strongdual.certification.oracles import AbstractDualNormOracle, AutoOracle, BoundRequest, LocalSearch
from torch_strongdual.errors import InvalidInputError, SoundnessError, UnsupportedModelError
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import BranchSpec, GatedReLU, ParallelNet, ParallelWeights

from ..references.convex_program import convex_program_optimum, gated_program_optimum, linear_program_optimum

RTOL = 1e-3


def build(
    kind: str, num_inputs: int, num_outputs: int, *, bias: bool = False, num_branches: int = 3, **options: Any
) -> ParallelNet:
    first, last = nn.Linear(num_inputs, 2, bias=False), nn.Linear(2, num_outputs, bias=bias)
    layers: dict[str, list[nn.Module]] = {
        "relu": [first, nn.ReLU(), last],
        "leaky": [first, nn.LeakyReLU(0.2), last],
        "linear": [first, nn.Linear(2, 2, bias=False), last],
        "gated": [first, GatedReLU(num_inputs), last],
        "deep": [first, nn.ReLU(), nn.Linear(2, 2, bias=False), nn.ReLU(), last],
    }
    return ParallelNet(*layers[kind], num_branches=num_branches, **{"dtype": torch.float64, **options})


def check_history(result: OptimizationResult) -> None:
    """The objective never rises, the bound never falls, they never cross, and the certificate is of the network returned."""
    objectives = [record.objective for record in result.history]
    bounds = [record.dual_bound for record in result.history]
    assert all(later <= earlier for earlier, later in pairwise(objectives))
    assert all(later >= earlier for earlier, later in pairwise(bounds))
    assert bounds[-1] <= objectives[-1]
    assert result.certificate.dual_bound == bounds[-1]
    assert result.certificate.primal_value == pytest.approx(objectives[-1], rel=1e-5, abs=1e-12)
    assert result.certificate.primal_value >= result.certificate.dual_bound


def optimum(drawn: Drawn, net: ParallelNet, kind: str, beta: float) -> float:
    """By complete enumeration or nuclear norms, in CVXPY."""
    inputs, targets = drawn.inputs.numpy(), drawn.targets.numpy()
    targets = np.eye(net.branch_spec.out_features)[targets] if drawn.loss == "softmax" else targets
    if kind == "linear":
        return linear_program_optimum(inputs, targets, drawn.loss, beta, bias=drawn.bias).value
    if kind == "gated":
        masks = net.branch_spec.gate_masks(drawn.inputs)
        assert masks is not None
        return gated_program_optimum(inputs, targets, masks.numpy(), drawn.loss, beta, bias=drawn.bias).value
    slope = 0.2 if kind == "leaky" else 0.0
    return convex_program_optimum(inputs, targets, drawn.loss, beta, slope=slope, bias=drawn.bias).value


def campaign(loss: str, kinds: list[str], number: int, seed: int, *, with_truth: bool = True) -> int:
    """Optimise random problems and check each; returns how many were certified."""
    generator = np.random.default_rng(seed)
    certified = 0
    for index in range(number):
        kind = kinds[index % len(kinds)]
        num_outputs = 3 if loss == "softmax" else int(generator.integers(1, 4)) if kind in ("linear", "gated") else 1
        drawn = draw(generator, loss, num_outputs=num_outputs)
        torch.manual_seed(index)
        net = build(kind, drawn.inputs.shape[1], num_outputs, bias=drawn.bias, num_branches=int(generator.integers(1, 5)))
        limit = max_path_decay(net, drawn.inputs, drawn.targets, loss=LOSSES[loss])
        if limit.lower < 1e-6:  # the zero net is optimal, up to rounding, at any strength
            continue
        beta = drawn.fraction * limit.lower
        start = certify(net, drawn.inputs, drawn.targets, loss=LOSSES[loss], path_decay=beta, time_budget=1e-3).primal_value
        result = optimize_to_certificate(
            net, drawn.inputs, drawn.targets, loss=LOSSES[loss], path_decay=beta, rtol=RTOL, time_budget=600.0
        )
        check_history(result)
        assert result.certificate.primal_value <= start
        if with_truth:
            truth = optimum(drawn, net, kind, beta)
            error = 1e-6 * (1.0 + abs(truth))  # Clarabel is asked for 1e-10
            assert result.certificate.dual_bound <= truth + error
            assert result.certificate.primal_value >= truth - error
            if truth > 1e-3:
                assert result.certificate.primal_value <= truth * (1 + 1.1 * RTOL) + error, (index, kind)
                assert result.certificate.dual_bound >= truth * (1 - 1.1 * RTOL) - error, (index, kind)
        certified += result.certificate.is_certified
    return certified


# ------------------------------------------------------------------ against the truth


@pytest.mark.parametrize("loss", ["squared", "logistic", "huber", "absolute"])
def test_both_ends_meet_at_the_optimum_of_complete_enumeration(loss: str) -> None:
    campaign(loss, ["relu", "leaky"], 3, seed=11)


@pytest.mark.parametrize("loss", ["squared", "softmax", "huber", "absolute"])
def test_both_ends_meet_at_the_optimum_of_linear_and_gated_networks(loss: str) -> None:
    campaign(loss, ["linear", "gated"], 2, seed=12)


def test_monotone_and_never_crossing_on_many_problems() -> None:
    assert campaign("squared", ["relu", "leaky", "linear", "gated"], 16, seed=13, with_truth=False) >= 14


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["squared", "logistic", "huber", "absolute", "softmax"])
def test_monotone_and_never_crossing_on_two_hundred_problems_each(loss: str) -> None:
    kinds = ["linear", "gated"] if loss == "softmax" else ["relu", "leaky", "linear", "gated"]
    assert campaign(loss, kinds, 200, seed=14) >= 180


def test_vector_outputs_and_three_layers() -> None:
    inputs, targets = data(10, 2, 3)
    for kind, num_outputs in (("relu", 3), ("deep", 1)):
        net = build(kind, 2, num_outputs)
        columns = targets[:, :num_outputs]
        beta = 0.3 * max_path_decay(net, inputs, columns, loss=HalfSquaredLoss()).lower
        result = optimize_to_certificate(net, inputs, columns, loss=HalfSquaredLoss(), path_decay=beta, time_budget=10.0)
        check_history(result)
        assert result.certificate.relative_gap <= (RTOL if kind == "relu" else 0.2)


def data(num_samples: int = 20, num_inputs: int = 2, num_outputs: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(num_samples, num_inputs, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(num_samples, num_outputs, generator=generator, dtype=torch.float64)


def test_a_single_bad_branch_becomes_the_optimum() -> None:
    """Local descent from one branch cannot get there: branches have to be added."""
    inputs, targets = data(40)
    net = build("relu", 2, 1, num_branches=1)
    result = optimize_to_certificate(net, inputs, targets, loss=HalfSquaredLoss(), path_decay=0.3, rtol=1e-6)
    check_history(result)
    assert result.stop is OptimizationStop.CERTIFIED
    assert result.certificate.relative_gap <= 1e-6


# ------------------------------------------------------------------ contract


def test_the_given_network_is_not_changed_and_the_certificate_is_of_the_one_returned() -> None:
    inputs, targets = data()
    net = build("relu", 2, 1, bias=True)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    result = optimize_to_certificate(net, inputs, targets, loss=nn.MSELoss(), path_decay=0.05)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    again = certify(result.net, inputs, targets, loss=nn.MSELoss(), path_decay=0.05, rtol=RTOL)
    assert again.primal_value == result.certificate.primal_value
    assert again.is_certified
    objective = nn.MSELoss()(result.net(inputs), targets) + 0.05 * result.net.path_penalty()
    assert objective.item() == pytest.approx(result.certificate.primal_value, rel=1e-12)
    power = result.net.path_penalty("power").item()
    assert power == pytest.approx(result.net.path_penalty("product").item(), rel=1e-12)  # balanced


@pytest.mark.parametrize("share", [0.2, 2.0])
def test_a_gated_network_keeps_the_gates_its_certificate_speaks_of(share: float) -> None:
    """Gates without a branch left would make the certificate one of a smaller set of networks."""
    inputs, targets = data()
    net = build("gated", 2, 1, num_branches=6)
    limit = max_path_decay(net, inputs, targets, loss=nn.MSELoss()).upper
    result = optimize_to_certificate(net, inputs, targets, loss=nn.MSELoss(), path_decay=share * limit)
    kept = {tuple(gate) for gate in result.net.gate_vectors()[0].tolist()}
    assert kept == {tuple(gate) for gate in net.gate_vectors()[0].tolist()}
    assert result.certificate.is_certified
    again = certify(result.net, inputs, targets, loss=nn.MSELoss(), path_decay=share * limit)
    assert again.dual_bound == pytest.approx(result.certificate.dual_bound, rel=1e-2)


def test_single_precision_is_kept_where_it_suffices() -> None:
    inputs, targets = data()
    net = build("relu", 2, 1, dtype=torch.float32)
    loose = optimize_to_certificate(net, inputs.float(), targets.float(), loss=nn.MSELoss(), path_decay=0.05)
    assert loose.net.branch_weights()[0].dtype == torch.float32
    assert loose.certificate.is_certified
    net = build("relu", 2, 1, dtype=torch.bfloat16)
    tight = optimize_to_certificate(net, inputs.float(), targets.float(), loss=nn.MSELoss(), path_decay=0.05, rtol=1e-6)
    assert tight.net.branch_weights()[0].dtype == torch.float64
    assert tight.certificate.is_certified


def test_strong_decay_gives_the_zero_network() -> None:
    inputs, targets = data()
    result = optimize_to_certificate(build("relu", 2, 1), inputs, targets, loss=HalfSquaredLoss(), path_decay=1e3)
    assert result.certificate.is_certified
    assert result.net.path_penalty().item() == 0.0
    assert result.net.num_branches == 1


def test_batches_are_taken_as_by_certify() -> None:
    inputs, targets = data()
    batches = [(inputs[:7], targets[:7]), (inputs[7:], targets[7:])]
    result = optimize_to_certificate(build("relu", 2, 1), batches, loss=nn.MSELoss(), path_decay=0.1)
    assert result.certificate.is_certified


@pytest.mark.parametrize("loss", [HalfSquaredLoss(), nn.HuberLoss(), nn.L1Loss()], ids=["squared", "huber", "absolute"])
@pytest.mark.parametrize("kind", ["relu", "linear", "gated", "deep"])
@pytest.mark.parametrize("num_samples", [1, 7])
def test_an_output_bias_that_fits_everything_is_certified(num_samples: int, kind: str, loss: nn.Module) -> None:
    """One sample, or targets that are all equal: the optimum is zero, which no relative gap above zero reaches by descent."""
    inputs, targets = data(num_samples, 3, 2)
    result = optimize_to_certificate(
        build(kind, 3, 2, bias=True), inputs, targets[:1].expand(num_samples, 2), loss=loss, path_decay=1e-3, rtol=1e-6
    )
    assert result.stop is OptimizationStop.CERTIFIED
    assert result.certificate.primal_value <= 1e-290
    assert torch.equal(result.net(inputs), targets[:1].expand(num_samples, 2))


def test_time_is_kept() -> None:
    inputs, targets = data(400, 8)
    net = build("relu", 8, 1)
    optimize_to_certificate(net, inputs[:5], targets[:5], loss=HalfSquaredLoss(), path_decay=1.0, time_budget=0.1)  # compile
    deadline = Deadline()
    result = optimize_to_certificate(net, inputs, targets, loss=HalfSquaredLoss(), path_decay=1.0, time_budget=1.0, rtol=1e-9)
    assert deadline.elapsed <= 10.0  # the machine may be shared
    assert result.stop is OptimizationStop.TIME
    assert result.certificate.status is CertificateStatus.BUDGET_EXHAUSTED
    check_history(result)
    assert result.history[-1].objective < result.history[0].objective


def test_noise_that_keeps_the_search_for_branches_busy_leaves_time_for_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred branches, and every refit of them lowers the objective a little: once, all the time went there."""
    importlib.import_module("scipy.optimize")
    count_cpu_time(monkeypatch)
    inputs, targets = data(1000, 5)
    arguments: dict[str, Any] = {"loss": HalfSquaredLoss(), "rtol": 1e-4, "time_budget": 6.0}
    path_decay = 0.05 * max_path_decay(build("relu", 5, 1), inputs, targets, loss=HalfSquaredLoss()).lower
    result = optimize_to_certificate(build("relu", 5, 1), inputs, targets, path_decay=path_decay, **arguments)
    assert result.certificate.relative_gap <= 0.5
    assert sum(record.phase == "bound" for record in result.history) >= 2


class Loose(AbstractDualNormOracle):
    """Proves a fifth more than the truth, and keeps what it was asked."""

    def __init__(self) -> None:
        self.oracle = AutoOracle()
        self.asked: list[tuple[Tensor, float]] = []

    def supports(self, spec: BranchSpec) -> str | None:
        return self.oracle.supports(spec)

    def init(self, spec: BranchSpec, inputs: Tensor) -> Any:
        return self.oracle.init(spec, inputs)

    def bound(self, state: Any, dual_point: Tensor, request: BoundRequest) -> DualNormBound:
        self.asked.append((dual_point, request.deadline.remaining))
        found = self.oracle.bound(state, dual_point, request)
        return dataclasses.replace(found, upper=1.2 * found.upper)


def test_where_only_the_proof_is_lacking_it_gets_the_same_point_and_all_the_time() -> None:
    inputs, targets = data(8)
    oracle = Loose()
    options: dict[str, Any] = {"path_decay": 0.3, "rtol": 1e-5, "time_budget": 100.0}
    result = optimize_to_certificate(build("linear", 2, 1), inputs, targets, loss=HalfSquaredLoss(), oracle=oracle, **options)
    assert result.stop is OptimizationStop.STUCK
    assert not result.certificate.is_certified
    (first, _), *later = oracle.asked
    again = [seconds for point, seconds in later if torch.equal(point, first)]
    assert max(again) > 0.8 * (100.0 - result.history[-1].seconds) > 60.0


class Interrupting(AbstractDualNormOracle):
    """Answers a number of times, then Ctrl-C comes."""

    def __init__(self, answers: int) -> None:
        self.oracle, self.answers = AutoOracle(), answers

    def supports(self, spec: BranchSpec) -> str | None:
        return self.oracle.supports(spec)

    def init(self, spec: BranchSpec, inputs: Tensor) -> Any:
        return self.oracle.init(spec, inputs)

    def bound(self, state: Any, dual_point: Tensor, request: BoundRequest) -> DualNormBound:
        if self.answers == 0:
            raise KeyboardInterrupt
        self.answers -= 1
        return self.oracle.bound(state, dual_point, request)


@pytest.mark.parametrize("answers", [0, 1, 3])
def test_an_interrupt_returns_the_best_so_far(answers: int) -> None:
    inputs, targets = data(8)
    arguments: dict[str, Any] = {"loss": HalfSquaredLoss(), "path_decay": 0.1, "rtol": 1e-14}
    result = optimize_to_certificate(build("relu", 2, 1), inputs, targets, oracle=Interrupting(answers), **arguments)
    assert result.stop is OptimizationStop.INTERRUPTED
    check_history(result)
    assert math.isfinite(result.certificate.dual_bound) == (answers > 0)
    assert result.history[-1].objective < result.history[0].objective


def test_an_oracle_without_upper_bounds_still_improves_and_ends() -> None:
    inputs, targets = data()
    net = build("relu", 2, 1)
    result = optimize_to_certificate(net, inputs, targets, loss=HalfSquaredLoss(), path_decay=0.5, oracle=LocalSearch())
    assert result.stop is OptimizationStop.STUCK
    assert not result.certificate.is_certified
    truth = optimize_to_certificate(net, inputs, targets, loss=HalfSquaredLoss(), path_decay=0.5)
    assert result.certificate.primal_value <= truth.certificate.primal_value * (1 + RTOL)


def test_the_bar_is_shown_when_wanted_only(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    inputs, targets = data()
    arguments: dict[str, Any] = {"loss": HalfSquaredLoss(), "path_decay": 0.5}
    optimize_to_certificate(build("relu", 2, 1), inputs, targets, **arguments)
    assert capsys.readouterr() == ("", "")
    optimize_to_certificate(build("relu", 2, 1), inputs, targets, progress=True, **arguments)
    assert "gap" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"net": nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1))}, UnsupportedModelError, "from_sequential"),
        ({"rtol": math.inf}, InvalidInputError, "rtol"),
        ({"rtol": 0.0}, InvalidInputError, "rtol"),
        ({"time_budget": -1.0}, InvalidInputError, "time_budget"),
        ({"path_decay": 0.0}, InvalidInputError, "path_decay"),
        ({"inputs": torch.full((20, 2), math.nan)}, InvalidInputError, "inputs"),
        ({"targets": torch.full((20, 1), math.inf)}, InvalidInputError, "targets"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    inputs, targets = data()
    arguments = {"net": build("relu", 2, 1), "inputs": inputs, "targets": targets, "loss": nn.MSELoss(), "path_decay": 0.1}
    with pytest.raises(error, match=message):
        optimize_to_certificate(**{**arguments, **changes})


def test_weights_that_are_not_finite_are_refused() -> None:
    net = build("relu", 2, 1)
    with torch.no_grad():
        net.branch_weights()[1][0] = math.nan
    with pytest.raises(InvalidInputError, match=r"2\.weight"):
        optimize_to_certificate(net, *data(), loss=nn.MSELoss(), path_decay=0.1)


def test_weights_that_are_computed_are_refused_before_any_work() -> None:
    net = build("relu", 2, 1)
    weight_norm(net.get_submodule("0"))
    with pytest.raises(UnsupportedModelError, match="computed from other parameters"):
        optimize_to_certificate(net, *data(), loss=nn.MSELoss(), path_decay=0.1, time_budget=math.inf)


def test_an_assessment_uses_the_bound_that_is_known_and_withdraws_a_wrong_one() -> None:
    inputs, targets = data()
    net = build("relu", 2, 1)
    problem = TrainingProblem.from_model(net, inputs, targets, loss=HalfSquaredLoss(), path_decay=0.5)
    solver, weights = DualSolver(problem), ParallelWeights.from_module(net)
    assert solver.assess(weights, rtol=RTOL).dual_bound == -math.inf
    certificate = solver.step(weights, rtol=RTOL, deadline=Deadline(10.0))
    assessed = solver.assess(weights, rtol=RTOL)
    assert (assessed.dual_bound, assessed.primal_value) == (certificate.dual_bound, certificate.primal_value)
    residual_only = DualSolver(problem).step(weights, rtol=1e-9, deadline=Deadline(10.0), max_rounds=0)
    assert residual_only.stats["rounds"] == 0.0
    assert residual_only.dual_bound < certificate.primal_value
    solver.offer(DualBound(value=2 * certificate.primal_value, dual_point=None, dual_norm_upper=0.0), {})
    with pytest.raises(SoundnessError):
        solver.assess(weights, rtol=RTOL)
    assert solver.best.value == -math.inf


# ------------------------------------------------------------------ parts


def working(kind: str, *, num_outputs: int = 2, bias: bool = True) -> tuple[TrainingProblem, WorkingBranches, ParallelNet]:
    inputs, targets = data(15, 3, num_outputs)
    net = build(kind, 3, num_outputs, bias=bias, num_branches=4)
    problem = TrainingProblem.from_model(net, inputs, targets, loss=HalfSquaredLoss(), path_decay=0.4)
    return problem, WorkingBranches.of_network(ParallelWeights.from_module(net)), net


@pytest.mark.parametrize("kind", ["relu", "linear", "gated", "deep"])
def test_splitting_keeps_outputs_and_never_raises_the_penalty(kind: str) -> None:
    problem, branches, net = working(kind)
    assert branches.number == 8
    outputs = net(problem.inputs).detach()
    assert torch.allclose(branches.outputs(problem), outputs, rtol=1e-12, atol=1e-12)
    assert float(branches.magnitudes().sum()) <= net.path_penalty().item() * (1 + 1e-14)
    back = branches.to_net(build(kind, 3, 2, bias=True, num_branches=4) if kind != "gated" else net)
    assert torch.allclose(back(problem.inputs).detach(), outputs, rtol=1e-12, atol=1e-12)
    assert torch.allclose(branches.to_weights(problem).outputs(problem.inputs), outputs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["relu", "linear", "gated", "deep"])
def test_every_part_lowers_the_objective(kind: str) -> None:
    problem, branches, _ = working(kind)
    generator = torch.Generator().manual_seed(0)
    before = branches.objective(problem)
    for one_by_one in (False, True):
        larger = grown(problem, branches, random_branches(problem, 12, generator), one_by_one=one_by_one)
        assert larger.objective(problem) < before
    lower = descend(problem, larger, deadline=Deadline(), max_iterations=50)
    assert lower.objective(problem) < larger.objective(problem)
    convex = refitted(problem, lower, rtol=1e-8, deadline=Deadline())
    assert convex.objective(problem) <= lower.objective(problem) * (1 + 1e-8)


def test_a_line_search_finds_the_minimiser_in_closed_form() -> None:
    problem, _, _ = working("relu", num_outputs=1, bias=False)
    outputs, direction = torch.zeros(15, 1, dtype=torch.float64), problem.loss.targets.clone()
    square = float(direction.square().sum())
    assert best_step(problem, outputs, direction, 0.25 * square) == pytest.approx(0.75, rel=1e-9)
    assert best_step(problem, outputs, direction, 2.0 * square) == 0.0
    assert best_step(problem, outputs, -direction, 0.1) == 0.0
    assert best_step(problem, outputs, torch.zeros_like(direction), 0.1) == 0.0


def test_equal_branches_are_merged_and_others_are_not() -> None:
    problem, branches, _ = working("relu")
    doubled = branches.joined(branches.scaled(torch.linspace(0.5, 2.0, branches.number, dtype=torch.float64)))
    single = merged(problem, doubled)
    assert single.number == branches.number
    assert torch.allclose(single.outputs(problem), doubled.outputs(problem), rtol=1e-12, atol=1e-12)
    assert float(single.magnitudes().sum()) == pytest.approx(float(doubled.magnitudes().sum()), rel=1e-12)
    assert merged(problem, branches) is branches
    gated_problem, gated, _ = working("gated")
    assert gated.gates is not None
    moved = WorkingBranches(weights=gated.weights, gates=(gated.gates + 1) % 4, output_bias=gated.output_bias)
    assert merged(gated_problem, gated.joined(moved)).number == 2 * gated.number
