"""This library's part of the race."""

from __future__ import annotations

import torch

from benchmarks._race_instances import RaceInstance, network
from benchmarks._race_trace import Trace
from torch_strongdual.certification import Deadline, DualSolver, OptimizationRecord, TrainingProblem
from torch_strongdual.certification._training.training_loop import TrainingLoop
from torch_strongdual.certification._working_branches import WorkingBranches
from torch_strongdual.nn import ParallelNet, ParallelWeights

__all__ = ["optimised", "prepared"]


def prepared(net: ParallelNet, instance: RaceInstance) -> DualSolver:
    """A solver with its data reduced and its code compiled, as ``optimize_to_certificate`` has it before its time starts."""
    loss, decay = instance.torch_loss, instance.decay
    x, y = torch.from_numpy(instance.inputs), torch.from_numpy(instance.targets)
    problem = TrainingProblem.from_model(net, x, y, loss=loss, path_decay=decay)
    solver = DualSolver(problem)
    solver.prepare()
    return solver


def optimised(instance: RaceInstance, deadline: Deadline, *, rtol: float) -> Trace:
    """What ``optimize_to_certificate`` does, on the benchmark's clock, each improvement recorded."""
    trace = Trace(method="this library")
    net = network(instance)
    solver = prepared(net, instance)
    loops: list[TrainingLoop] = []

    def note(record: OptimizationRecord) -> None:
        if loops:
            first, last = loops[0].best.weights
            trace.record(deadline, first[:, 0].numpy(), last[:, :, 0].numpy(), bound=record.dual_bound, always=True)

    start = WorkingBranches.of_network(ParallelWeights.from_module(net))
    loops.append(TrainingLoop(solver, start, rtol=rtol, deadline=deadline, report=note))
    stop = loops[0].run()
    trace.note = "" if stop.name in ("CERTIFIED", "TIME") else stop.value
    trace.seconds = deadline.elapsed
    return trace
