r"""Convolutional networks on images of digits, certified through their patches.

Each branch is a convolution, an activation, average pooling and a linear layer. Its dual norm is that of a two-layer branch on
all patches of all images, at a rank of at most the numbers in a kernel. So small kernels are certified however many patches
there are, branches without activation whatever the kernel, and kernels of 3 x 3 with a ReLU (rank nine, thousands of
patches) show where the bounds of this library end.

===================  ==================================  =====================================================
network              data                                how its dual norm is bounded
===================  ==================================  =====================================================
2x2                  ten classes                         branch and bound in 4 dimensions, nine outputs
2x2 with bias        ten classes                         the same in 5 dimensions
3x3 linear           ten classes, pooled to 3 x 3        a spectral norm, exact
3x3                  even or odd                          a polynomial of degree four: valid, and loose
===================  ==================================  =====================================================

Run it with ``python -m torch_strongdual.recipes.digits_convolution``. It prints a table, writes ``record.json``, and exits with
status 1 if one of the first three networks is not certified.

References:
    Wang, Ergen, Pilanci, "Parallel Deep Neural Networks Have Zero Duality Gap", ICLR 2023. https://arxiv.org/abs/2110.06482
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

from torch_strongdual.certification import Certificate, certify, max_path_decay
from torch_strongdual.certification.oracles import AbstractDualNormOracle, PatchOracle, PolynomialSandwich
from torch_strongdual.nn import ParallelNet

from ._run import config_from_args, environment, option, report_console, seed_everything, write_record

__all__ = ["Config", "main"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Options of the recipe."""

    num_threads: int = option(1, "threads")
    seed: int = option(0, "seed of the weights")
    num_samples: int = option(300, "images, the first ones of the data set")
    num_branches: int = option(64, "branches of each network")
    num_steps: int = option(1500, "iterations of L-BFGS, at most")
    rtol: float = option(0.01, "relative gap up to which a network counts as globally optimal")
    time_budget: float = option(120.0, "seconds for each certificate of a small kernel, at most")
    large_kernel_time: float = option(60.0, "seconds for the certificate of 3 x 3 kernels with a ReLU")
    output: str = option("runs/digits_convolution", "folder for record.json")
    fast: bool = option(False, "few images and branches, strong penalties, and a moment for the 3 x 3 kernels")


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A network, and what it is trained on.

    Args:
        name: In the table.
        layers: Makes the layers of a branch.
        fraction: Strength of the penalty relative to the one that makes the zero network optimal.
        is_binary: Whether the task is even or odd, not which digit.
        expects_certificate: Whether an open gap is a failure of the recipe.
        oracle: Bounds the dual norm; ``None`` for the default.
    """

    name: str
    layers: Callable[[], Sequence[nn.Module]]
    fraction: float
    is_binary: bool = False
    expects_certificate: bool = True
    oracle: AbstractDualNormOracle | None = None

    @property
    def loss(self) -> nn.Module:
        """Cross-entropy of one output or of ten."""
        return nn.BCEWithLogitsLoss() if self.is_binary else nn.CrossEntropyLoss()


def _pooled(kernel_size: int, num_outputs: int, *, bias: bool = False) -> Callable[[], Sequence[nn.Module]]:
    return lambda: [
        nn.Conv2d(1, 1, kernel_size, bias=bias),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(1, num_outputs),
    ]


EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment(name="2x2", layers=_pooled(2, 10), fraction=0.2),
    Experiment(name="2x2 with bias", layers=_pooled(2, 10, bias=True), fraction=0.3),
    Experiment(
        name="3x3 linear",
        layers=lambda: [nn.Conv2d(1, 2, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(18, 10)],
        fraction=0.1,
    ),
    Experiment(
        name="3x3",
        layers=_pooled(3, 1),
        fraction=0.5,
        is_binary=True,
        expects_certificate=False,
        oracle=PatchOracle(PolynomialSandwich()),  # tighter here than all else, boxes included
    ),
)


def _data(num_samples: int, *, is_binary: bool) -> tuple[Tensor, Tensor]:
    """Images of 8 x 8 pixels from 0 to 1, and their classes."""
    digits = load_digits()
    images = torch.from_numpy(digits.images[:num_samples, None]) / 16
    targets = torch.from_numpy(digits.target[:num_samples])
    return images, (targets[:, None] % 2).double() if is_binary else targets


def train(net: ParallelNet, inputs: Tensor, targets: Tensor, loss: nn.Module, *, path_decay: float, num_steps: int) -> None:
    """L-BFGS on loss and power penalty, in place: smooth, and of the same optimum as the product penalty."""
    optimizer = torch.optim.LBFGS(
        net.parameters(),
        max_iter=num_steps,
        max_eval=2 * num_steps,
        history_size=30,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-10,
        tolerance_change=1e-12,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        objective: Tensor = loss(net(inputs), targets) + path_decay * net.path_penalty("power")
        objective.backward()  # type: ignore[no-untyped-call]
        return objective

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    net.balance_()


def solve(experiment: Experiment, config: Config) -> dict[str, Any]:
    """Train and certify one network; return what to record."""
    inputs, targets = _data(config.num_samples, is_binary=experiment.is_binary)
    seed_everything(config.seed)
    net = ParallelNet(*experiment.layers(), num_branches=config.num_branches, dtype=torch.float64)
    loss = experiment.loss
    time_budget = config.time_budget if experiment.expects_certificate else config.large_kernel_time
    # The attained bound will do for a scale; the proven one may be far from it.
    largest = max_path_decay(
        net, inputs, targets, loss=loss, rtol=0.05, time_budget=min(10.0, time_budget), oracle=experiment.oracle
    ).lower
    path_decay = experiment.fraction * largest
    start = time.perf_counter()
    train(net, inputs, targets, loss, path_decay=path_decay, num_steps=config.num_steps)
    trained, trained_cpu = time.perf_counter(), time.process_time()
    certificate = certify(
        net,
        inputs,
        targets,
        loss=loss,
        path_decay=path_decay,
        rtol=config.rtol,
        time_budget=time_budget,
        oracle=experiment.oracle,
    )
    return {
        "name": experiment.name,
        "branch": str(net.branch_spec),
        "num_samples": len(inputs),
        "fraction": experiment.fraction,
        "path_decay": path_decay,
        "accuracy": _accuracy(net, inputs, targets, is_binary=experiment.is_binary),
        "expects_certificate": experiment.expects_certificate,
        **_record(certificate),
        "training_seconds": trained - start,
        "certificate_seconds": time.perf_counter() - trained,
        "certificate_cpu_seconds": time.process_time() - trained_cpu,
    }


def _record(certificate: Certificate) -> dict[str, Any]:
    stats = certificate.stats
    lower = float(stats["dual_norm_lower"])
    return {
        "is_certified": certificate.is_certified,
        "primal_value": certificate.primal_value,
        "dual_bound": certificate.dual_bound,
        "relative_gap": certificate.relative_gap,
        "oracle": stats["oracle"],
        "patches": stats["patches"],
        "distinct_patches": stats["distinct_patches"],
        "rank": stats.get("rank"),
        "dual_norm_ratio": float(stats["dual_norm_upper"]) / lower if lower > 0.0 else float("inf"),
        "reason": stats.get("reason", ""),
    }


def _accuracy(net: ParallelNet, inputs: Tensor, targets: Tensor, *, is_binary: bool) -> float:
    """On the training images."""
    with torch.no_grad():
        outputs = net(inputs)
    predicted = (outputs > 0.0).double() if is_binary else outputs.argmax(dim=1)
    return float((predicted == targets).double().mean())


def _table(results: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=f"Convolutional networks on {results[0]['num_samples']} images of digits")
    for heading in ("network", "objective", "proven gap", "certified", "dual norm\nupper / attained", "patches\n(distinct)"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    table.add_column("oracle")
    table.add_column("training\naccuracy", justify="right")
    table.add_column("seconds", justify="right")
    for result in results:
        table.add_row(
            result["name"],
            f"{result['primal_value']:.4f}",
            f"{100 * result['relative_gap']:.2g} %",
            "yes" if result["is_certified"] else "no",
            f"{result['dual_norm_ratio']:.3f}",
            f"{result['patches']:.0f} ({result['distinct_patches']:.0f})",
            str(result["oracle"]),
            f"{100 * result['accuracy']:.0f} %",
            f"{result['certificate_seconds']:.1f}",
        )
    return table


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the recipe.

    Args:
        argv: Options; those of the process if ``None``.

    Returns:
        The record that is written as JSON; ``record["is_certified"]`` says whether all networks are that should be.
    """
    config = config_from_args(
        Config, argv, name="digits_convolution", description="Certify convolutional networks on images of digits."
    )
    experiments = EXPERIMENTS
    if config.fast:
        config = dataclasses.replace(
            config, num_samples=min(config.num_samples, 60), num_branches=min(config.num_branches, 16), large_kernel_time=0.3
        )
        experiments = tuple(dataclasses.replace(e, fraction=max(e.fraction, 0.8)) for e in EXPERIMENTS)
    console = report_console(width=140)
    start = time.perf_counter()
    torch.set_num_threads(config.num_threads)
    results = [solve(experiment, config) for experiment in track(experiments, "training", console=console)]
    record = {
        "recipe": "digits_convolution",
        "config": config,
        "environment": environment(),
        "results": results,
        "is_certified": all(result["is_certified"] for result in results if result["expects_certificate"]),
        "seconds": time.perf_counter() - start,
    }
    path = Path(config.output) / "record.json"
    write_record(path, record)
    console.print(_table(results))
    console.print(f"Took {record['seconds']:.0f} s. Wrote {path}.", soft_wrap=True)
    return record


if __name__ == "__main__":
    sys.exit(0 if main()["is_certified"] else 1)
