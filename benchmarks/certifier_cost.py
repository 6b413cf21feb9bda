"""What certification costs while training: bounds of the dual norm against an epoch of training, and the memory they take.

    python -m benchmarks.certifier_cost            # about ten minutes: 10^5 samples, 784 features, 10 classes
    python -m benchmarks.certifier_cost --quick    # 256 samples, some 10 seconds

Writes ``certifier_cost.txt`` and ``certifier_cost.json`` to ``benchmarks/results`` (``--output``).
"""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle

import torch
from torch import Tensor, nn

from benchmarks._ratios import interleaved_ratios
from benchmarks._report import RatioReport, RatioRow
from benchmarks._suite import Benchmark, Options, run_from_command_line
from torch_strongdual.certification import Deadline, TrainingProblem
from torch_strongdual.certification.oracles import AbstractDualNormOracle, BoundRequest, GatedOracle, LinearOracle
from torch_strongdual.nn import GatedReLU, ParallelNet, ParallelWeights

BENCHMARK = Benchmark(title="bounds of the dual norm against an epoch of training", duration="10 minutes")

_FEATURES, _CLASSES, _HIDDEN = 784, 10, 64
_MIB = 2**20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """How much there is, and how much of it is timed.

    Args:
        samples: Of the data.
        branches: Of the network, and gates.
        batch: Samples of a batch of training.
        timed_batches: Of an epoch.
        timed_samples: Whose outputs are computed.
    """

    samples: int
    branches: int
    batch: int
    timed_batches: int
    timed_samples: int


_FULL = _Sizes(samples=100_000, branches=64, batch=256, timed_batches=8, timed_samples=4_000)
_QUICK = _Sizes(samples=256, branches=16, batch=64, timed_batches=1, timed_samples=256)


def run(options: Options) -> None:
    """Measure and write."""
    torch.manual_seed(0)
    sizes = _QUICK if options.quick else _FULL
    inputs = torch.randn(sizes.samples, _FEATURES)
    labels = (inputs[:, :_CLASSES] + 0.5 * torch.randn(sizes.samples, _CLASSES)).argmax(dim=1)
    report = RatioReport(title="Certifier: cost of one certification's parts", extra={"memory": []})
    report.notes = _notes(inputs, sizes)
    for name, activation, oracle, target in (
        ("linear", None, LinearOracle(), 1.0),
        (f"gated, {sizes.branches} gates", GatedReLU(_FEATURES), GatedOracle(), 10.0),
    ):
        report.rows += _rows(report, name, _network(activation, sizes.branches), oracle, inputs, labels, target, sizes)
    report.rows.append(_many_gates(report, options))
    print(report.write(options.stem, device=options.device))


def _notes(inputs: Tensor, sizes: _Sizes) -> list[str]:
    return [
        f"Data: {len(inputs)} samples, {_FEATURES} features, {_CLASSES} classes, float32 ({inputs.nbytes / _MIB:.0f} MiB).",
        f"Net: {sizes.branches} branches {_FEATURES}-{_HIDDEN}-{_CLASSES}, cross-entropy.",
        f"Training epoch: forward, backward and AdamW step on batches of {sizes.batch}; batches timed: {sizes.timed_batches}; "
        "their time is multiplied.",
        "bound: one dual norm, proven, of the network's residual.",
        f"primal: outputs of the network in float64 with their rounding error, and the objective; samples timed: "
        f"{sizes.timed_samples}; their time is multiplied.",
    ]


def _network(activation: nn.Module | None, num_branches: int) -> ParallelNet:
    layers = [nn.Linear(_FEATURES, _HIDDEN, bias=False), *([] if activation is None else [activation])]
    return ParallelNet(*layers, nn.Linear(_HIDDEN, _CLASSES, bias=False), num_branches=num_branches)


def _rows(
    report: RatioReport,
    name: str,
    net: ParallelNet,
    oracle: AbstractDualNormOracle,
    inputs: Tensor,
    labels: Tensor,
    target: float,
    sizes: _Sizes,
) -> list[RatioRow]:
    problem = TrainingProblem.from_model(net, inputs, labels, loss=nn.CrossEntropyLoss(), path_decay=1e-3)
    weights = ParallelWeights.from_module(net)
    with _growth(report, f"{name}: primal, {len(inputs)} samples"):
        primal = problem.primal(weights)
    with _growth(report, f"{name}: init, {len(inputs)} samples"):
        state = oracle.init(problem.spec, problem.inputs)
    point = problem.dual_candidate(primal.outputs)
    with _growth(report, f"{name}: bound, {len(inputs)} samples"):
        oracle.bound(state, point, BoundRequest(deadline=Deadline()))
    few = TrainingProblem.from_model(
        net, inputs[: sizes.timed_samples], labels[: sizes.timed_samples], loss=nn.CrossEntropyLoss(), path_decay=1e-3
    )
    calls: dict[str, Callable[[], object]] = {
        "training": _training(net, inputs, labels, sizes),
        "bound": lambda: oracle.bound(state, point, BoundRequest(deadline=Deadline())),
        "primal": lambda: few.primal(weights),
    }
    ratios = interleaved_ratios(calls, "training", repetitions=7)
    epochs = sizes.timed_batches / -(-len(inputs) // sizes.batch)
    whole = {"bound": 1.0, "primal": len(inputs) / sizes.timed_samples}
    return [
        RatioRow(
            work=f"{name}, n={len(inputs)}",
            ratio=dataclasses.replace(
                ratio,
                reference="training epoch",
                median=epochs * whole[part] * ratio.median,
                low=epochs * whole[part] * ratio.low,
                high=epochs * whole[part] * ratio.high,
                seconds=whole[part] * ratio.seconds,
                reference_seconds=ratio.reference_seconds / epochs,
            ),
            target=target if part == "bound" else None,
        )
        for part, ratio in ratios.items()
    ]


def _training(net: ParallelNet, inputs: Tensor, labels: Tensor, sizes: _Sizes) -> Callable[[], None]:
    trained = ParallelNet(*[net.branch(0)[i] for i in range(len(net.branch(0)))], num_branches=sizes.branches)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
    loss = nn.CrossEntropyLoss()
    batches = cycle(zip(inputs.split(sizes.batch), labels.split(sizes.batch), strict=True))

    def train() -> None:
        for _ in range(sizes.timed_batches):
            x, y = next(batches)
            optimizer.zero_grad()
            loss(trained(x), y).backward()
            optimizer.step()

    return train


def _many_gates(report: RatioReport, options: Options) -> RatioRow:
    """Ten thousand gates: time in units of what their products alone cost."""
    num_samples, gates = (2_000, 1_000) if options.quick else (10_000, 10_000)
    features = 64
    net = ParallelNet(nn.Linear(features, 1, bias=False), GatedReLU(features), nn.Linear(1, 1, bias=False), num_branches=gates)
    inputs, point = torch.randn(num_samples, features), torch.randn(num_samples, 1, dtype=torch.float64)
    oracle = GatedOracle()
    with _growth(report, f"{gates} gates: init, {num_samples} samples"):
        state = oracle.init(net.branch_spec, inputs)
    with _growth(report, f"{gates} gates: bound, {num_samples} samples"):
        oracle.bound(state, point, BoundRequest(deadline=Deadline()))
    left, right = inputs.double().T.contiguous(), torch.randn(num_samples, 500, dtype=torch.float64)
    calls: dict[str, Callable[[], object]] = {
        "bound": lambda: oracle.bound(state, point, BoundRequest(deadline=Deadline())),
        "matrix products": lambda: [left @ right for _ in range(gates // 500)],
    }
    ratio = interleaved_ratios(calls, "matrix products", repetitions=7)["bound"]
    return RatioRow(work=f"{gates} gates, n={num_samples}, d={features}, c=1", ratio=ratio)


@contextmanager
def _growth(report: RatioReport, name: str) -> Iterator[None]:
    """Note by how much the peak memory of the process grows; work that stays below an earlier peak counts as nothing."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    report.notes.append(f"Peak memory, {name}: +{grown:.0f} MiB.")
    noted = report.extra["memory"]
    assert isinstance(noted, list)
    noted.append({"work": name, "growth_of_peak_mib": grown})


if __name__ == "__main__":
    run_from_command_line("certifier_cost", run, __doc__)
