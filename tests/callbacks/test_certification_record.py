from __future__ import annotations

import dataclasses
import math

import pytest

from torch_strongdual.callbacks import CertificationRecord


def record(primal_value: float, dual_bound: float, relative_gap: float) -> CertificationRecord:
    return CertificationRecord(
        epoch=0, primal_value=primal_value, dual_bound=dual_bound, relative_gap=relative_gap, path_decay=0.1, seconds=0.5
    )


def test_the_gap_of_a_record_is_a_difference() -> None:
    assert record(3.0, 1.0, 2.0 / 3.0).duality_gap == 2.0
    assert record(3.0, -math.inf, math.inf).duality_gap == math.inf


def test_records_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        record(3.0, 1.0, 0.5).epoch = 1  # type: ignore[misc]
