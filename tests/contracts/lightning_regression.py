"""A small regression to train with Lightning: two inputs, where the dual norm is exact at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from torch_strongdual.nn import ParallelNet
from torch_strongdual.optim import PathAdamW

__all__ = [
    "IGNORE_ADVICE",
    "NUM_SAMPLES",
    "PATH_DECAY",
    "Regression",
    "make_data",
    "make_loader",
    "make_trainer",
]

NUM_SAMPLES = 12
PATH_DECAY = 0.05

# Lightning's own: advice on workers and loggers, and its use of what torch has deprecated.
_ADVICE = (
    "ignore:.*LeafSpec.*:FutureWarning",
    "ignore:.*does not have many workers.*",
    "ignore:You defined a `validation_step` but have no `val_dataloader`.*",
    "ignore:.*sampler has shuffling enabled.*",
    "ignore:.*smaller than the logging interval.*",
    "ignore:Checkpoint directory .* exists and is not empty.*",
    "ignore:Experiment logs directory .* exists and is not empty.*",
)


def IGNORE_ADVICE(test: Callable[..., None] | type) -> Any:  # noqa: N802  (used as a mark)
    """Mark a test so that Lightning's advice is no error in it."""
    for line in _ADVICE:
        test = pytest.mark.filterwarnings(line)(test)
    return test


class Regression(pl.LightningModule):
    """One parallel network, trained with the path penalty; the batches it sees are counted."""

    def __init__(
        self,
        *,
        path_decay: float = PATH_DECAY,
        lr: float = 0.05,
        num_branches: int = 4,
        loss: nn.Module | None = None,
        make_optimizer: Callable[[ParallelNet], Optimizer] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = ParallelNet(
                nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False), num_branches=num_branches
            )
        self.loss = nn.MSELoss() if loss is None else loss
        self.path_decay, self.lr, self.make_optimizer = path_decay, lr, make_optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss: Tensor = self.loss(self.net(inputs), targets)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        inputs, targets = batch
        self.log("val_loss", self.loss(self.net(inputs), targets))

    def configure_optimizers(self) -> Optimizer:
        if self.make_optimizer is not None:
            return self.make_optimizer(self.net)
        return PathAdamW(self.net.path_param_groups(self.path_decay), lr=self.lr)


def make_data(num_samples: int = NUM_SAMPLES, *, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs (n, 2) and noisy targets (n, 1) of two ReLU units."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_samples, 2, generator=generator)
    noise = 0.1 * torch.randn(num_samples, 1, generator=generator)
    return inputs, inputs[:, :1].relu() - 0.5 * inputs.sum(1, keepdim=True).relu() + noise


def make_loader(num_samples: int = NUM_SAMPLES, *, batch_size: int = 4, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*make_data(num_samples)), batch_size=batch_size, **options)


def make_trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    """A quiet trainer on the CPU; what it writes lies in ``folder``."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 3,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **(quiet | options))
