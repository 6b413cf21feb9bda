"""Whether clipping of gradients is still at work when training ends: then what is minimised is another objective."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from torch_strongdual.certification import Certificate
from torch_strongdual.errors import StrongDualWarning

__all__ = ["ClippingWatch"]

_NOTABLE = 0.9


class ClippingWatch:
    """Measures, over an epoch, how much clipping leaves of the gradients.

    The optimizers add the penalty themselves, so gradients are those of the loss, and do not vanish at the optimum. Clipped
    there, they weigh less against the penalty than they should.

    Args:
        is_penalty_apart: Whether it is the optimizer that adds the penalty; nothing is watched otherwise.
    """

    def __init__(self, *, is_penalty_apart: bool) -> None:
        self._is_penalty_apart = is_penalty_apart
        self._epoch, self._left = -1, list[Tensor]()

    def see(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the gradients of a step, before they are clipped; nothing is read back from the device."""
        if trainer.current_epoch != self._epoch:
            self._epoch, self._left = trainer.current_epoch, []
        limit = trainer.gradient_clip_val
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        if not (self._is_penalty_apart and limit and gradients):
            return
        norm = _length(gradients)
        clipped = torch.as_tensor(float(limit), device=norm.device)
        if str(trainer.gradient_clip_algorithm or "norm").endswith("value"):
            clipped = _length([gradient.clamp(-limit, limit) for gradient in gradients])
        self._left.append((clipped / norm).clamp(max=1.0))

    def warn(self, certificate: Certificate | None) -> None:
        """Warn if a tenth or more was cut off on average, and the network is not certified all the same."""
        if certificate is not None and certificate.is_certified:
            return
        left = float(torch.stack(self._left).nanmean()) if self._left else 1.0
        if left < _NOTABLE:
            rank_zero_warn(
                f"`gradient_clip_val` still cut gradients to {100 * left:.2g} % of their length in the last epoch. That "
                "shortens those of the loss, not that of the path penalty, which the optimizer adds itself: what is "
                f"minimised then has about {1 / max(left, 1e-9):.2g} times the penalty that is certified, and the gap need "
                "not close. Raise it until it acts at the start of training only.",
                category=StrongDualWarning,
            )


def _length(gradients: Sequence[Tensor]) -> Tensor:
    lengths = torch.stack([torch.linalg.vector_norm(gradient).to(torch.float32) for gradient in gradients])
    whole: Tensor = torch.linalg.vector_norm(lengths)
    return whole
