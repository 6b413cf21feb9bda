"""What else trains such networks: L-BFGS and Adam on the weights, and convex programs over sampled activation patterns.

Each takes an instance and a deadline and returns the networks it found on the way. None of them proves a bound on the
global optimum: those of the convex programs hold for the sampled patterns only.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from benchmarks._race_instances import RaceInstance
from benchmarks._race_trace import Trace, objective
from torch_strongdual.certification import Deadline

__all__ = ["adam", "full_batch_lbfgs", "pyscnn", "sampled_gates"]

FloatArray = NDArray[np.float64]

_WIDTH = 200
_PATIENCE = 3  # restarts without an improvement after which a local method gives up
_FIRST_GATES = 20


def full_batch_lbfgs(instance: RaceInstance, deadline: Deadline) -> Trace:
    """200 neurons, weight decay, SciPy's L-BFGS to convergence; then again from other weights while that pays."""
    trace = Trace(method="L-BFGS, restarts")
    for start in _restarts(instance, deadline, trace):
        shapes = [start[0].shape, start[1].shape]

        def value_and_gradient(flat: FloatArray, shapes: list[torch.Size] = shapes) -> tuple[float, FloatArray]:
            if deadline.expired:
                raise _OutOfTime
            leaves = [piece.requires_grad_() for piece in _unflattened(flat, shapes)]
            total = _power_objective(instance, *leaves)
            gradients = torch.autograd.grad(total, leaves)
            return float(total.detach()), torch.cat([g.flatten() for g in gradients]).numpy()

        def note(flat: FloatArray, shapes: list[torch.Size] = shapes) -> None:
            trace.record(deadline, *(piece.numpy() for piece in _unflattened(flat, shapes)))

        flat = torch.cat([piece.flatten() for piece in start]).numpy()
        options = {"maxiter": 20_000, "maxfun": 40_000, "maxcor": 30, "ftol": 1e-13, "gtol": 1e-10}
        try:
            flat = minimize(value_and_gradient, flat, jac=True, method="L-BFGS-B", callback=note, options=options).x
        except _OutOfTime:
            break
        trace.record(deadline, *(piece.numpy() for piece in _unflattened(flat, shapes)), always=True)
    trace.seconds = deadline.elapsed
    return trace


def adam(instance: RaceInstance, deadline: Deadline, *, num_steps: int = 5000) -> Trace:
    """200 neurons, weight decay, full-batch Adam with a decaying step size; again with another one and other weights."""
    trace = Trace(method="Adam, restarts")
    rates = itertools.cycle((1e-2, 3e-2, 3e-3))
    for start in _restarts(instance, deadline, trace):
        weights = [piece.clone().requires_grad_() for piece in start]
        optimizer = torch.optim.Adam(weights, lr=next(rates))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
        for step in range(num_steps):
            optimizer.zero_grad()
            _power_objective(instance, *weights).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if step % 20 == 19:
                trace.record(deadline, *(w.detach().numpy() for w in weights))
            if deadline.expired:
                break
        trace.record(deadline, *(w.detach().numpy() for w in weights), always=True)
    trace.seconds = deadline.elapsed
    return trace


def sampled_gates(instance: RaceInstance, deadline: Deadline) -> Trace:
    """The convex program over 20, 40, 80, ... sampled activation patterns, each solved by Clarabel through CVXPY."""
    trace = Trace(method="sampled gates, Clarabel")
    trace.record(deadline, *_empty(instance), always=True)
    spent, previous = 0.0, 0
    for number in (_FIRST_GATES * 2**k for k in range(20)):
        if 4.0 * spent > deadline.remaining:  # twice the variables, twice the constraints
            trace.note = f"stopped at {number // 2} gates: twice as many would not end in time"
            break
        before = deadline.elapsed
        patterns = _patterns(instance, number)
        if number > _FIRST_GATES and len(patterns) == previous:
            trace.note = f"stopped at {previous} patterns: no more were found"
            break
        previous = len(patterns)
        found = _solved_program(instance, patterns, deadline.remaining)
        if found is None:
            trace.note = f"no solution at {number} gates"
            break
        trace.record(deadline, *found, always=True)
        spent = deadline.elapsed - before
    trace.seconds = deadline.elapsed
    return trace


def pyscnn(instance: RaceInstance, deadline: Deadline) -> Trace:
    """ConvexReLU of PyPI's ``pyscnn`` by its augmented Lagrangian, float64, over 100, 400, 1600, ... sampled gates."""
    trace = Trace(method="pyscnn ConvexReLU")
    if instance.loss != "squared":
        trace.note = "has the squared loss only"
        return trace
    if find_spec("scnn") is None or find_spec("lab") is None:
        trace.note = "pyscnn is not installed"
        return trace
    trace.record(deadline, *_empty(instance), always=True)
    with contextlib.suppress(_OutOfTime), _ended_by(deadline):
        for number in (100 * 4**k for k in range(5)):
            found = _scnn_network(_run_scnn(instance, number, deadline, trace))
            trace.record(deadline, *found, always=True)
    trace.seconds = deadline.elapsed
    return trace


# Parts


class _OutOfTime(Exception):  # noqa: N818  (control flow, not an error)
    pass


@contextlib.contextmanager
def _ended_by(deadline: Deadline) -> Iterator[None]:
    """Raise _OutOfTime when the CPU time of this process says so: for code that has no limit of its own."""

    def stop(*_: object) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, max(deadline.remaining, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def _empty(instance: RaceInstance) -> tuple[FloatArray, FloatArray]:
    return np.zeros((1, instance.inputs.shape[1])), np.zeros((1, instance.targets.shape[1]))


def _restarts(instance: RaceInstance, deadline: Deadline, trace: Trace) -> Iterator[tuple[Tensor, Tensor]]:
    """Random weights, one seed after another, until the time is up or several in a row brought nothing."""
    best, idle = math.inf, 0
    for seed in itertools.count():
        if deadline.expired or idle >= _PATIENCE:
            return
        generator = torch.Generator().manual_seed(seed)
        yield (
            0.1 * torch.randn(_WIDTH, instance.inputs.shape[1], dtype=torch.float64, generator=generator),
            0.1 * torch.randn(_WIDTH, instance.targets.shape[1], dtype=torch.float64, generator=generator),
        )
        value = objective(instance, *trace.last)
        idle = 0 if value < best * (1.0 - 1e-6) else idle + 1
        best = min(best, value)


def _unflattened(flat: FloatArray, shapes: list[torch.Size]) -> list[Tensor]:
    pieces = torch.from_numpy(flat.copy()).split([shape.numel() for shape in shapes])
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _power_objective(instance: RaceInstance, first: Tensor, last: Tensor) -> Tensor:
    """With weight decay, which has the same minimum and is smooth in the weights."""
    outputs = torch.relu(torch.from_numpy(instance.inputs) @ first.T) @ last
    targets = torch.from_numpy(instance.targets)
    if instance.loss == "squared":
        loss = 0.5 * (outputs - targets).square().sum()
    else:
        loss = torch.nn.functional.cross_entropy(outputs, targets, reduction="sum")
    return loss + 0.5 * instance.decay * (first.square().sum() + last.square().sum())


def _patterns(instance: RaceInstance, number: int) -> FloatArray:
    """Distinct activation patterns (number, n) of random directions; the first ones of a larger number are the same."""
    directions = np.random.default_rng(0).standard_normal((number, instance.inputs.shape[1]))
    return np.unique((directions @ instance.inputs.T >= 0).astype(np.float64), axis=0)


def _solved_program(instance: RaceInstance, patterns: FloatArray, seconds: float) -> tuple[FloatArray, FloatArray] | None:
    """One neuron a pattern, output and sign: exact for one output, an upper bound for more."""
    import cvxpy as cp

    inputs, targets = instance.inputs, instance.targets
    d = inputs.shape[1]
    number, c = len(patterns), targets.shape[1]
    signs = (2.0 * patterns - 1.0).T  # (n, number)
    parts = [cp.Variable((d, number)) for _ in range(2 * c)]
    outputs = [
        cp.sum(cp.multiply(patterns.T, inputs @ (up - down)), axis=1) for up, down in zip(parts[::2], parts[1::2], strict=True)
    ]
    if instance.loss == "squared":
        loss = 0.5 * sum(cp.sum_squares(output - targets[:, k]) for k, output in enumerate(outputs))
    else:
        stacked = cp.vstack(outputs).T
        loss = cp.sum(cp.log_sum_exp(stacked, axis=1)) - cp.sum(cp.multiply(targets, stacked))
    penalty = sum(cp.sum(cp.norm(part, 2, axis=0)) for part in parts)
    problem = cp.Problem(cp.Minimize(loss + instance.decay * penalty), [cp.multiply(signs, inputs @ p) >= 0 for p in parts])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a solution may be inaccurate; its objective is measured anyway
            problem.solve(solver=cp.CLARABEL, time_limit=max(seconds, 0.1), max_threads=1)
    except cp.SolverError:
        return None
    if parts[0].value is None:
        return None
    first = np.concatenate([part.value.T for part in parts])
    last = np.concatenate([sign * np.tile(np.eye(c)[k], (number, 1)) for k in range(c) for sign in (1.0, -1.0)])
    return first, last


def _run_scnn(instance: RaceInstance, number: int, deadline: Deadline, trace: Trace) -> Any:
    """Its model after convergence; while it runs, its own hook for metrics tells what it has."""
    from scnn.activations import sample_gate_vectors
    from scnn.metrics import Metrics
    from scnn.models import ConvexReLU
    from scnn.optimize import optimize_model
    from scnn.private.methods.optimization_procedures import double_loop_procedure
    from scnn.regularizers import NeuronGL1
    from scnn.solvers import AL

    n, d = instance.inputs.shape
    model = ConvexReLU(sample_gate_vectors(0, d, number), c=instance.targets.shape[1])
    solver = AL(model, max_primal_iters=100_000, max_dual_iters=10_000, tol=1e-8, constraint_tol=1e-8)
    original = double_loop_procedure.update_metrics

    def noting(log: Any, internal: Any, *rest: Any, **options: Any) -> Any:
        trace.record(deadline, *_scnn_network(np.asarray(internal.weights)))
        return original(log, internal, *rest, **options)

    double_loop_procedure.update_metrics = noting
    default = torch.get_default_dtype()
    try:
        trained, _ = optimize_model(
            model,
            solver,
            Metrics(metric_freq=10),
            instance.inputs,
            instance.targets,
            regularizer=NeuronGL1(instance.decay / n),  # its loss is divided by twice the number of samples
            return_convex=True,
            unitize_data=False,
            dtype="float64",
        )
    finally:
        double_loop_procedure.update_metrics = original
        torch.set_default_dtype(default)
    return np.stack(trained.parameters)


def _scnn_network(weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """From (2, c, number, d): the positive and the negative part of each output."""
    _, c, number, d = weights.shape
    signs = np.array([1.0, -1.0])[:, None, None, None] * np.eye(c)[None, :, None, :]
    return weights.reshape(-1, d), np.broadcast_to(signs, (2, c, number, c)).reshape(-1, c)
