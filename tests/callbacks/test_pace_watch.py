from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from torch_strongdual.callbacks import CertifyOptimality
from torch_strongdual.callbacks._pace_watch import PaceWatch
from torch_strongdual.errors import StrongDualWarning

from ..contracts.lightning_regression import IGNORE_ADVICE, Regression, make_loader, make_trainer


def messages(monkeypatch: pytest.MonkeyPatch, *, certification: float, training: float, number: int = 6) -> list[str]:
    """Of a fit in which each certification, and the epochs before the next, take so many seconds."""
    clock = 100.0
    monkeypatch.setattr("torch_strongdual.callbacks._pace_watch.time.monotonic", lambda: clock)
    watch = PaceWatch()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(number):
            clock += certification
            watch.see([certification], every_n_epochs=5)
            clock += training
    return [str(warning.message) for warning in caught]


def test_a_fit_that_mostly_certifies_is_told_once_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    (message,) = messages(monkeypatch, certification=10.0, training=0.5)
    assert message.startswith("The first 3 certifications took 30 s, training between them 1.0 s.")
    assert "`every_n_epochs=50`" in message


@pytest.mark.parametrize(
    ("certification", "training", "number"), [(10.0, 10.0, 6), (1.0, 0.0, 6), (10.0, 0.0, 2)], ids=["slow", "short", "few"]
)
def test_others_are_not(monkeypatch: pytest.MonkeyPatch, certification: float, training: float, number: int) -> None:
    assert messages(monkeypatch, certification=certification, training=training, number=number) == []


@pytest.mark.parametrize("background", [False, True])
@IGNORE_ADVICE
def test_it_is_said_while_a_fit_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: bool) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(PaceWatch, "see", lambda self, seconds, every_n_epochs: seen.extend(seconds))
    callback = CertifyOptimality(background=background)
    with warnings.catch_warnings():
        warnings.simplefilter("error", StrongDualWarning)
        make_trainer(tmp_path, callback, max_epochs=3).fit(Regression(), make_loader())
    assert seen == ([] if background else [record.seconds for record in callback.history])
