"""Whether the loss that is trained is the one that is certified."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from torch_strongdual.certification import TrainingProblem
from torch_strongdual.functional import path_penalty

from ._objective import Objective

__all__ = ["LossComparison", "check_loss_scale"]

# Of the loss plus that of the zero network. Products in single precision are off by 1e-6 or so, in half precision by 1e-2.
_RTOL, _RTOL_LOW_PRECISION = 1e-3, 5e-2
_CURE = (
    "Return loss(net(inputs), targets) for batches as the loader yields them. If `training_step` changes the batches, pass "
    "what network and loss are given by `data=`; if another loss is trained, pass it by `loss=`; if the path penalty is part "
    "of the loss, pass its strength by `path_decay=` and leave it out of the optimizer."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expected:
    """Loss of the network, its scale, and the path penalty times its strength in the forms that have the same minimum."""

    loss: float
    scale: float
    penalties: tuple[float, ...]


class LossComparison:
    """Compares, on the batch of the first gradient of a fit, what is differentiated with what is certified.

    Args:
        may_have_penalty: Whether the path penalty may be part of the loss, in any form that has the certified minimum.

    Attributes:
        batch: What ``training_step`` is given.
    """

    def __init__(self, *, may_have_penalty: bool) -> None:
        self._may_have_penalty = may_have_penalty
        self.batch: Any = None

    def check(self, trainer: pl.Trainer, minimised: Tensor, find: Callable[[], tuple[nn.Module, Objective]]) -> None:
        """End the fit, on all ranks, if they differ on rank 0.

        Args:
            trainer: Of the fit.
            minimised: What is about to be differentiated.
            find: Gives the loss and the network that are certified; its weights are still those of ``minimised``.

        Raises:
            MisconfigurationException: Which gives both numbers.
        """
        mistake = None
        if trainer.is_global_zero:
            with isolate_rng(), torch.no_grad():
                loss, objective = find()
                mistake = _difference(trainer, self.batch, minimised, objective, loss, self._may_have_penalty)
        mistake = trainer.strategy.broadcast(mistake)
        if mistake is not None:
            raise MisconfigurationException(mistake)


def check_loss_scale(trainer: pl.Trainer, loss: nn.Module, *, path_decay: float | None) -> None:
    """Refuse sums over mini-batches, beside which the optimizer's ``path_decay`` is not that of the sum over all data."""
    is_sum = getattr(loss, "reduction", "sum") == "sum"
    num_batches = trainer.num_training_batches * trainer.world_size
    if path_decay is None and is_sum and num_batches > 1:
        raise MisconfigurationException(
            f"The loss {type(loss).__name__} is a sum over samples, and an epoch has {num_batches} batches: the "
            "optimizer's path_decay counts in each of them, so that beside the sum over all data it has another strength. "
            "Train with reduction='mean', or pass the `path_decay=` that belongs to the sum over all data."
        )


def _difference(
    trainer: pl.Trainer, batch: Any, minimised: Tensor, objective: Objective, loss: nn.Module, may_have_penalty: bool
) -> str | None:
    """Say in which way ``minimised`` is not the loss of the network on ``batch``; ``None`` if it is, or nothing can be said."""
    expected = _expected(batch, objective, loss)
    value = float(minimised.detach()) * _undone_scaling(trainer)
    if expected is None or not all(map(math.isfinite, (value, expected.loss, expected.scale))):
        return None
    passing = [0.0]
    if may_have_penalty:
        shares = (1, trainer.num_training_batches) if getattr(loss, "reduction", "sum") == "sum" else (1,)
        passing += [penalty / share for penalty in expected.penalties for share in shares]
    if any(_is_close(value, expected, extra, _rtol(trainer)) for extra in passing):
        return None
    return (
        f"`training_step` returns {value:.6g} for the first batch, where {type(loss).__name__} of the network is "
        f"{expected.loss:.6g}: what is trained is not what would be certified. "
        f"{_reason(batch, objective, value, expected)}{_CURE}"
    )


def _expected(batch: Any, objective: Objective, loss: nn.Module) -> _Expected | None:
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
        return None  # in a dry run; otherwise the data could not be read
    weights, penalty = objective.weights, objective.penalty
    try:
        problem = TrainingProblem.from_spec(
            weights.spec, *batch, loss=loss, path_decay=penalty.path_decay, penalty=penalty.penalty
        )
        primal = problem.primal(weights)
        zero = torch.zeros_like(primal.outputs)
        values = [float(problem.loss.value(outputs)) for outputs in (primal.outputs, zero)]
        forms = ("l2_path",) if penalty.penalty == "l2_path" else ("product", "power")
        penalties = [float(path_penalty(weights.weights, form).sum()) for form in forms]
    except Exception:  # what is wrong with the problem is said where all data are read
        return None
    return _Expected(
        loss=values[0],
        scale=abs(values[0]) + abs(values[1]),
        penalties=tuple(penalty.path_decay * value for value in penalties),
    )


def _is_close(value: float, expected: _Expected, extra: float, rtol: float) -> bool:
    return abs(value - expected.loss - extra) <= rtol * (expected.scale + extra)


def _undone_scaling(trainer: pl.Trainer) -> float:
    """Lightning divides the loss for gradient accumulation, and multiplies it for half precision."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return trainer.accumulate_grad_batches / (1.0 if scaler is None else float(scaler.get_scale()))


def _rtol(trainer: pl.Trainer) -> float:
    is_exact = trainer.precision in ("32-true", "64-true") and torch.get_float32_matmul_precision() == "highest"
    return _RTOL if is_exact else _RTOL_LOW_PRECISION


def _reason(batch: Any, objective: Objective, value: float, expected: _Expected) -> str:
    """The two mistakes that can be told from the numbers."""
    targets = batch[1]
    if targets.is_floating_point() and targets.ndim == 1 and objective.weights.spec.out_features == 1:
        return (
            f"The targets have shape {tuple(targets.shape)} and the outputs {(len(targets), 1)}, which torch broadcasts "
            "against each other unless one of them is reshaped: `targets.unsqueeze(1)`. "
        )
    if any(_is_close(value, expected, penalty, _RTOL) for penalty in expected.penalties):
        return "The difference is the path penalty, which the optimizer applies already. "
    return ""
