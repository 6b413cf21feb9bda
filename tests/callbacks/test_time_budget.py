"""All that certification costs shows in ``certificate/seconds``, and that stays within the time budget, in CPU time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from torch_strongdual.callbacks import CertifyOptimality
from torch_strongdual.nn import GatedReLU, ParallelNet

from .._cpu_clock import count_cpu_time
from ..contracts.lightning_regression import IGNORE_ADVICE, Regression, make_trainer

BUDGET = 0.5
CHUNK = 1.0  # seconds of one oracle chunk, or one pass of the data, at the sizes below, with room to spare
OVERHEAD = 1.0  # seconds of Lightning's own work when it logs for the first time, with room to spare


class Clock(pl.Callback):
    """Notes the CPU time at the end of each epoch."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(time.process_time())


def relu_net() -> ParallelNet:
    return ParallelNet(nn.Linear(14, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False), num_branches=20)


def deep_net() -> ParallelNet:
    layers = [nn.Linear(10, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False)]
    return ParallelNet(*layers, num_branches=10)


def gated_net() -> ParallelNet:
    return ParallelNet(nn.Linear(60, 4, bias=False), GatedReLU(60), nn.Linear(4, 3, bias=False), num_branches=100)


def linear_net() -> ParallelNet:
    return ParallelNet(nn.Linear(100, 4, bias=False), nn.Linear(4, 3, bias=False), num_branches=20)


@pytest.mark.parametrize(
    ("make_net", "num_samples"), [(relu_net, 300), (deep_net, 200), (gated_net, 4_000), (linear_net, 10_000)]
)
@IGNORE_ADVICE
def test_the_whole_cost_is_shown_and_within_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_net: Callable[[], ParallelNet], num_samples: int
) -> None:
    count_cpu_time(monkeypatch)
    torch.manual_seed(0)
    module, net = Regression(lr=1e-3, path_decay=1e-4), make_net()
    module.net = net
    inputs = torch.randn(num_samples, net.branch_spec.widths[0])
    targets = torch.randn(num_samples, net.branch_spec.out_features)  # noise: no gap closes early
    before, after, certify = Clock(), Clock(), CertifyOptimality(time_budget=BUDGET, rtol=1e-9)
    trainer = make_trainer(tmp_path, before, certify, after, max_epochs=2)
    trainer.fit(module, DataLoader(TensorDataset(inputs, targets), batch_size=num_samples))
    assert [record.epoch for record in certify.history] == [0, 1]
    for start, end, record in zip(before.times, after.times, certify.history, strict=True):
        assert record.seconds <= end - start <= record.seconds + OVERHEAD
        assert record.seconds <= 1.1 * BUDGET + CHUNK
    assert trainer.callback_metrics["certificate/seconds"].item() == certify.history[-1].seconds
    assert all(record.dual_bound > -1e-200 for record in certify.history)
