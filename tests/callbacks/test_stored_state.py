from __future__ import annotations

from typing import Any

import pytest

from torch_strongdual.callbacks import CertificationRecord, CertifyOptimality, GrowBranches, GrowthRecord
from torch_strongdual.callbacks._stored_state import records_as_numbers, stored_mapping, stored_records
from torch_strongdual.errors import StrongDualWarning

GROWTH = GrowthRecord(epoch=1, num_added=2, num_pruned=0, objective_before=2.0, objective_after=1.0)
CERTIFIED = CertificationRecord(epoch=0, primal_value=2.0, dual_bound=1.0, relative_gap=0.5, path_decay=0.1, seconds=0.1)


def test_records_round_trip() -> None:
    assert stored_records(GrowthRecord, {"history": records_as_numbers([GROWTH, GROWTH])}) == [GROWTH, GROWTH]
    assert stored_records(CertificationRecord, {"history": records_as_numbers([CERTIFIED])}) == [CERTIFIED]


def test_fields_of_a_later_version_are_left_out() -> None:
    numbers = [numbers | {"more": 3} for numbers in records_as_numbers([GROWTH])]
    assert stored_records(GrowthRecord, {"history": numbers}) == [GROWTH]


@pytest.mark.parametrize("state", [{}, {"history": 3}, {"history": None}, {"history": [{"epoch": 1}]}, {"history": ["x"]}])
def test_what_cannot_be_read_is_a_warning(state: dict[str, Any]) -> None:
    with pytest.warns(StrongDualWarning, match="Training resumes without it"):
        assert stored_records(GrowthRecord, state) == []


def test_entries_that_are_no_mappings_are_empty() -> None:
    assert stored_mapping({"bound": {"a": 1}}, "bound") == {"a": 1}
    assert stored_mapping({"bound": "x"}, "bound") == stored_mapping({}, "bound") == {}


@pytest.mark.parametrize("callback", [CertifyOptimality(), GrowBranches(4)])
def test_callbacks_take_states_of_other_versions(callback: CertifyOptimality | GrowBranches) -> None:
    with pytest.warns(StrongDualWarning, match="Training resumes without it"):
        callback.load_state_dict({"history": 3, "bound": "x", "unfinished_epoch": None})
    assert callback.history == []
