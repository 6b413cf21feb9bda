"""Certificates on random small problems against the optimum by a convex program, and against their own verification."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from benchmarks._campaign_cases import awkward
from tests.references.convex_program import convex_program_optimum, gated_program_optimum, linear_program_optimum
from torch_strongdual.certification import VerificationVerdict, certify, max_path_decay, verify_certificate
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import GatedReLU, ParallelNet

__all__ = ["CERTIFICATE_FAMILIES"]

Generator = np.random.Generator

_SOLVER_ERROR = 1e-6  # of Clarabel, relative to 1 + optimum
_LOSSES: dict[str, nn.Module] = {
    "squared": HalfSquaredLoss(),
    "logistic": nn.BCEWithLogitsLoss(reduction="sum"),
    "huber": nn.HuberLoss(reduction="sum"),
    "absolute": nn.L1Loss(reduction="sum"),
    "softmax": nn.CrossEntropyLoss(reduction="sum"),
}


def _certificates(generator: Generator, *, kind: str) -> Iterator[tuple[str, float | None]]:
    """Train a little, certify, compare, verify."""
    names = list(_LOSSES)[: 4 if kind == "relu" else 5]
    loss = str(generator.choice(names))
    n, d = int(generator.integers(1, 7)), int(generator.integers(1, 4))
    c = 1 if kind == "relu" else int(generator.integers(2 if loss == "softmax" else 1, 4))
    rows = awkward(generator, n, d)
    rows = rows / (np.abs(rows).max() or 1.0)  # Clarabel needs sizes of about one
    targets = generator.standard_normal((n, c))
    if loss == "logistic":
        targets = (targets > 0).astype(np.float64)
    if loss == "softmax":
        targets = np.eye(c)[targets.argmax(1)]
    has_bias = bool(generator.random() < 0.4)
    torch.manual_seed(int(generator.integers(10**6)))
    slope = float(generator.choice([0.0, 0.0, 0.2]))
    middle: dict[str, nn.Module] = {"relu": nn.LeakyReLU(slope), "linear": nn.Identity(), "gated": GatedReLU(d)}
    net = ParallelNet(
        nn.Linear(d, 2, bias=False), middle[kind], nn.Linear(2, c, bias=has_bias), num_branches=5, dtype=torch.float64
    )
    inputs = torch.from_numpy(rows)
    given = torch.from_numpy(targets.argmax(1) if loss == "softmax" else targets)
    module = _LOSSES[loss]
    path_decay = float(generator.uniform(0.03, 0.7)) * max_path_decay(net, inputs, given, loss=module).lower or 1e-3
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-2)
    for _ in range(int(generator.choice([0, 20, 200]))):
        optimizer.zero_grad()
        (module(net(inputs), given) + path_decay * net.path_penalty("product")).backward()
        optimizer.step()
    certificate = certify(net, inputs, given, loss=module, path_decay=path_decay, rtol=1e-3, time_budget=3.0)
    report = verify_certificate(certificate, net, inputs, given, loss=module, path_decay=path_decay, time_budget=3.0)
    yield ("" if report.verdict is not VerificationVerdict.REFUTED else f"{loss}: {report}"), None
    try:
        warnings.filterwarnings("ignore", message="Solution may be inaccurate", category=UserWarning)
        if kind == "relu":
            optimum = convex_program_optimum(rows, targets, loss, path_decay, slope=slope, bias=has_bias).value
        elif kind == "linear":
            optimum = linear_program_optimum(rows, targets, loss, path_decay, bias=has_bias).value
        else:
            masks = net.branch_spec.gate_masks(inputs)
            assert masks is not None
            optimum = gated_program_optimum(rows, targets, masks.numpy(), loss, path_decay, bias=has_bias).value
    except RuntimeError:  # Clarabel gave up on the reference: nothing to compare with
        return
    error = _SOLVER_ERROR * (1.0 + abs(optimum))
    bound, primal = certificate.dual_bound, certificate.primal_value
    loose = (optimum - bound) / (1e-6 + abs(optimum))
    yield ("" if bound <= optimum + error else f"{loss}: dual bound {bound!r} > optimum {optimum!r}"), loose
    yield ("" if primal >= optimum - error else f"{loss}: primal value {primal!r} < optimum {optimum!r}"), None


CERTIFICATE_FAMILIES: dict[str, Callable[[Generator], Iterator[tuple[str, float | None]]]] = {
    f"certificates, {kind}": functools.partial(_certificates, kind=kind) for kind in ("relu", "linear", "gated")
}
