from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from torch_strongdual.callbacks import CertifyOptimality

from ..contracts.callback_contract import CallbackContract
from ..contracts.lightning_regression import IGNORE_ADVICE, Regression, make_loader, make_trainer


@IGNORE_ADVICE
class TestCertifyOptimality(CallbackContract):
    def make_callback(self) -> pl.Callback:
        return CertifyOptimality(every_n_epochs=2, time_budget=0.05)

    def make_module(self) -> pl.LightningModule:
        return Regression()

    def make_loader(self) -> DataLoader[Any]:
        return make_loader(shuffle=True)

    def make_trainer(self, folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
        return make_trainer(folder, *callbacks, **options)


@IGNORE_ADVICE
class TestCertifyOptimalityInTheBackground(TestCertifyOptimality):
    def make_callback(self) -> pl.Callback:
        return CertifyOptimality(every_n_epochs=2, time_budget=0.05, background=True)
