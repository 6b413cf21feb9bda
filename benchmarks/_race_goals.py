"""What `optimize_to_certificate` is meant to reach, on instances of each kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks._cpu_deadline import CpuDeadline
from benchmarks._race_instances import gaussian_regression, spiral, standardised_diabetes
from torch_strongdual.certification import DualSolver, TrainingProblem, max_path_decay
from torch_strongdual.certification._training.training_loop import TrainingLoop
from torch_strongdual.certification._working_branches import WorkingBranches
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import GatedReLU, ParallelNet, ParallelWeights

__all__ = ["Goal", "GoalRow", "goals", "pursued"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A gap to be proven within a time.

    Args:
        name: Of the instance.
        data: Makes inputs and targets.
        gap: Relative.
        seconds: CPU time.
        fraction: Of the largest useful weight decay.
        kind: ``"relu"``, ``"linear"`` or ``"gated"``.
        is_quick: Whether it is part of the quick run.
    """

    name: str
    data: Callable[[], tuple[FloatArray, FloatArray]]
    gap: float
    seconds: float
    fraction: float = 0.05
    kind: str = "relu"
    is_quick: bool = False


@dataclass(frozen=True, kw_only=True)
class GoalRow:
    """How far it came.

    Args:
        name: Of the instance.
        asked: Relative gap asked for.
        limit: Seconds of CPU time it was to take.
        gap: Proven.
        seconds: Taken.
        objective_seconds: When the objective was within 1e-4 of the final one.
        num_branches: Of the network.
        stop: Why it ended.
        reason: What keeps the gap open.
    """

    name: str
    asked: float
    limit: float
    gap: float
    seconds: float
    objective_seconds: float
    num_branches: int
    stop: str
    reason: str

    @property
    def is_reached(self) -> bool:
        """Whether the gap asked for is proven."""
        return self.gap <= self.asked


def goals() -> list[Goal]:
    """Gaussian inputs with targets of four ReLU neurons and noise unless said otherwise; squared loss."""

    def gaussian(n: int, d: int, *, num_outputs: int = 1) -> Callable[[], tuple[FloatArray, FloatArray]]:
        return lambda: gaussian_regression(n, d, num_outputs=num_outputs)

    return [
        Goal(name="Gaussian 1000 x 3", data=gaussian(1000, 3), gap=1e-4, seconds=20.0, is_quick=True),
        Goal(name="Gaussian 1000 x 4", data=gaussian(1000, 4), gap=1e-4, seconds=20.0),
        Goal(name="Gaussian 1000 x 5", data=gaussian(1000, 5), gap=1e-4, seconds=20.0),
        Goal(name="Gaussian 2000 x 2", data=gaussian(2000, 2), gap=1e-6, seconds=20.0, is_quick=True),
        Goal(
            name="Gaussian 2000 x 10, linear, 3 outputs",
            data=gaussian(2000, 10, num_outputs=3),
            gap=1e-6,
            seconds=20.0,
            kind="linear",
            is_quick=True,
        ),
        Goal(
            name="Gaussian 2000 x 10, ten gates", data=gaussian(2000, 10), gap=1e-6, seconds=20.0, kind="gated", is_quick=True
        ),
        Goal(name="Gaussian 500 x 6", data=gaussian(500, 6), gap=1e-3, seconds=60.0),
        Goal(name="diabetes 442 x 10, 0.2", data=standardised_diabetes, gap=1e-2, seconds=120.0, fraction=0.2),
        Goal(name="Gaussian 100 x 10", data=gaussian(100, 10), gap=5e-2, seconds=60.0),
        Goal(name="Gaussian 100 x 20", data=gaussian(100, 20), gap=5e-2, seconds=60.0),
        Goal(name="Gaussian 100 x 50", data=gaussian(100, 50), gap=5e-2, seconds=60.0),
        *(
            Goal(
                name=f"spiral {n}, 3 outputs",
                data=partial(spiral, n, with_ones=False),
                gap=1e-2,
                seconds=20.0,
                is_quick=n == 15,
            )
            for n in (15, 60, 150)
        ),
        *(
            Goal(name=f"spiral {n} + 1, 3 outputs", data=partial(spiral, n, with_ones=True), gap=1e-2, seconds=20.0)
            for n in (15, 60, 150)
        ),
    ]


def pursued(goal: Goal) -> GoalRow:
    """Optimise from ten random branches, and look."""
    inputs, targets = goal.data()
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    torch.manual_seed(0)
    first, last = nn.Linear(x.shape[1], 1, bias=False), nn.Linear(1, y.shape[1], bias=False)
    kinds: dict[str, list[nn.Module]] = {"relu": [nn.ReLU()], "linear": [], "gated": [GatedReLU(x.shape[1])]}
    middle = kinds[goal.kind]
    net = ParallelNet(first, *middle, last, num_branches=10, dtype=torch.float64)
    decay = goal.fraction * max_path_decay(net, x, y, loss=HalfSquaredLoss(), time_budget=5.0).lower
    solver = DualSolver(TrainingProblem.from_model(net, x, y, loss=HalfSquaredLoss(), path_decay=decay))
    solver.prepare()
    start = WorkingBranches.of_network(ParallelWeights.from_module(net))
    deadline = CpuDeadline(goal.seconds)
    loop = TrainingLoop(solver, start, rtol=goal.gap, deadline=deadline, report=lambda record: None)
    stop = loop.run()
    seconds = deadline.elapsed
    certificate = solver.assess(loop.best.to_weights(solver.problem), rtol=goal.gap)
    near = (record.seconds for record in loop.history if record.objective <= loop.objective * (1.0 + 1e-4))
    return GoalRow(
        name=goal.name,
        asked=goal.gap,
        limit=goal.seconds,
        gap=certificate.relative_gap,
        seconds=seconds,
        objective_seconds=next(near, math.nan),
        num_branches=loop.best.number,
        stop=stop.name,
        reason=str(certificate.stats.get("reason", "")),
    )
