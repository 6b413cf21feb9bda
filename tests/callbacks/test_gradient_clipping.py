"""Clipping shortens gradients of the loss and not that of the penalty: where it goes on, another objective is minimised."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_strongdual.callbacks import CertifyOptimality
from torch_strongdual.errors import StrongDualWarning

from ..contracts.lightning_regression import IGNORE_ADVICE, PATH_DECAY, Regression, make_loader, make_trainer


def fit(folder: Path, *, callback: CertifyOptimality | None = None, **options: Any) -> list[str]:
    """Messages of a fit of some epochs."""
    callback = callback or CertifyOptimality(10, rtol=1e-6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", StrongDualWarning)
        make_trainer(folder, callback, **({"max_epochs": 20} | options)).fit(Regression(), make_loader())
    return [str(warning.message) for warning in caught if issubclass(warning.category, StrongDualWarning)]


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@IGNORE_ADVICE
def test_clipping_to_the_end_is_warned_of(tmp_path: Path, algorithm: str) -> None:
    (message,) = fit(tmp_path, gradient_clip_val=0.01, gradient_clip_algorithm=algorithm)
    assert "`gradient_clip_val` still cut gradients to" in message


@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 100.0}, {"gradient_clip_val": 0.0}], ids=str)
@IGNORE_ADVICE
def test_what_does_not_clip_is_not(tmp_path: Path, options: dict[str, Any]) -> None:
    assert fit(tmp_path, **options) == []


@IGNORE_ADVICE
def test_neither_is_a_network_that_is_certified_all_the_same(tmp_path: Path) -> None:
    assert fit(tmp_path, callback=CertifyOptimality(10, rtol=1.0), gradient_clip_val=0.01) == []


@IGNORE_ADVICE
def test_a_penalty_that_is_part_of_the_loss_is_clipped_along(tmp_path: Path) -> None:
    class Penalised(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step(batch, batch_idx) + PATH_DECAY * self.net.path_penalty()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    callback = CertifyOptimality(10, rtol=1e-6, path_decay=PATH_DECAY)
    with warnings.catch_warnings():
        warnings.simplefilter("error", StrongDualWarning)
        make_trainer(tmp_path, callback, max_epochs=2, gradient_clip_val=0.01).fit(Penalised(), make_loader())
