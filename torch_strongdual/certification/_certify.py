"""The entry point: one call, one certificate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from torch_strongdual._checks import check_in, check_positive, check_positive_finite
from torch_strongdual.certification._dual.open_reason import non_finite_reason
from torch_strongdual.certification._gather import gathered
from torch_strongdual.certification._own_defaults import with_own_defaults
from torch_strongdual.certification.certificate import Certificate, CertificateScope, CertificateStatus
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.dual_solver import DualSolver
from torch_strongdual.certification.oracles import AbstractDualNormOracle
from torch_strongdual.certification.training_problem import CERTIFIED_PENALTIES, TrainingProblem
from torch_strongdual.functional._row_blocks import all_finite
from torch_strongdual.nn import ParallelWeights

__all__ = ["certify"]


@with_own_defaults
def certify(
    model: nn.Module,
    inputs: Tensor | Iterable[Any],  # shape: (num_samples, in_features)
    targets: Tensor | None = None,  # shape: (num_samples, out_features) or as the loss takes them
    *,
    loss: nn.Module,
    path_decay: float,
    penalty: str = "product",
    oracle: AbstractDualNormOracle | None = None,
    rtol: float = 1e-2,
    time_budget: float = 60.0,
) -> Certificate:
    r"""Prove how far a trained network is, at most, from the best objective any network of its architecture can reach.

    The objective is ``loss(f(X), Y) + path_decay * sum_k prod_l ||W_{l,k}||_F``, recomputed here in float64 from the
    model's weights. This product form is the smallest of the equivalent penalties, so training in another form, precision
    or batch order does not matter. The model is only read.

    Args:
        model: A :class:`~torch_strongdual.nn.ParallelNet`, or an ``nn.Sequential`` of its layers (one branch; the bound
            still speaks of all parallel networks).
        inputs: Inputs as the model takes them, or an iterable of ``(inputs, targets)`` batches such as a data loader.
        targets: Targets as the loss takes them; ``None`` with batches.
        loss: ``nn.MSELoss``, ``nn.HuberLoss``, ``nn.SmoothL1Loss``, ``nn.L1Loss``, ``nn.BCEWithLogitsLoss``,
            ``nn.CrossEntropyLoss`` or :class:`~torch_strongdual.losses.HalfSquaredLoss`, with their ``reduction``.
        path_decay: Strength of the penalty, above zero, in the units of the loss.
        penalty: ``"product"``; ``"power"`` (same optimum, same certificate); or ``"l2_path"``, exact for two layers, by a
            safe bound for deeper ones.
        oracle: Bounds the dual norm; default :class:`~torch_strongdual.certification.oracles.AutoOracle`.
        rtol: Relative gap up to which the model is called optimal.
        time_budget: Seconds, after the data are reduced (and code compiled, on first use); the best bound found until then
            is returned.

    Returns:
        A :class:`Certificate`. Non-finite data, weights or outputs give the status ``NUMERICAL_FAILURE`` and a bound of
        ``-inf``; a gap that stays open gives its reason in ``stats``.

    Raises:
        UnsupportedModelError: If the model has no dual here (the message names the layer and the cure).
        UnsupportedLossError: If the loss, or an option of it, has no conjugate here.
        InvalidInputError: If data are empty or of the wrong kind, labels outside the classes, or a number out of range.
        ShapeError: If inputs, targets and model do not fit together.
        SoundnessError: If a bound comes out above an attained value: a bug, please report it.

    Example:
        >>> import torch
        >>> from torch_strongdual.nn import ParallelNet
        >>> _ = torch.manual_seed(0)
        >>> net = ParallelNet(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False), num_branches=8)
        >>> x, y = torch.eye(2), torch.tensor([[2.0], [-1.0]])
        >>> certificate = certify(net, x, y, loss=nn.MSELoss(), path_decay=0.5)
        >>> certificate.is_certified, certificate.dual_bound > 1.1
        (False, True)

    References:
        Wang, Ergen, Pilanci, "Parallel Deep Neural Networks Have Zero Duality Gap", ICLR 2023. https://arxiv.org/abs/2110.06482
    """
    check_positive_finite("rtol", rtol)
    check_positive("time_budget", time_budget)
    inputs, targets = gathered(inputs, targets)
    weights = ParallelWeights.from_module(model)
    if not (all_finite(inputs) and all_finite(targets)):
        scope = CertificateScope.GATED if weights.spec.is_gated else CertificateScope.GLOBAL
        check_positive("path_decay", path_decay)
        check_in("penalty", penalty, CERTIFIED_PENALTIES)
        reason = non_finite_reason([("inputs", inputs), ("targets", targets)])
        return _nothing_proven(path_decay, penalty, rtol, scope, reason)
    problem = TrainingProblem.from_model(model, inputs, targets, loss=loss, path_decay=path_decay, penalty=penalty)
    solver = DualSolver(problem, oracle)
    solver.prepare()
    return solver.step(weights, rtol=rtol, deadline=Deadline(time_budget))


def _nothing_proven(path_decay: float, penalty: str, rtol: float, scope: CertificateScope, reason: str) -> Certificate:
    """The certificate for data that are not numbers."""
    return Certificate(
        primal_value=math.nan,
        dual_bound=-math.inf,
        dual_point=None,
        rtol=rtol,
        scale=math.nan,
        path_decay=path_decay,
        penalty=penalty,
        status=CertificateStatus.NUMERICAL_FAILURE,
        scope=scope,
        stats={"reason": reason},
    )
