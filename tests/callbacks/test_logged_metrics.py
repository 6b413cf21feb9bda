from __future__ import annotations

import math

from torch_strongdual.callbacks._logged_metrics import logged_metrics

from .test_certification_record import record


def test_without_records_there_is_nothing_to_log() -> None:
    assert logged_metrics([]) == {}
    assert logged_metrics([record(math.nan, -math.inf, math.inf)]) == {"seconds": 0.5}


def test_the_last_finite_value_of_each_metric_is_logged() -> None:
    history = [record(4.0, 1.0, 0.75), record(2.0, 1.5, 0.25), record(math.nan, 1.75, 1.0)]
    assert logged_metrics(history) == {
        "primal_value": 2.0,
        "dual_bound": 1.75,
        "duality_gap": 0.5,
        "relative_gap": 1.0,
        "seconds": 0.5,
    }
