from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch

from torch_strongdual.callbacks._plain_state import plain_state


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(1.5), 1.5),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (True, True),
        (None, None),
        ("text", "text"),
        (OrderedDict(b=np.float64(1.0), a=(np.int32(1), [np.float64(2.0)])), {"b": 1.0, "a": (1, [2.0])}),
    ],
)
def test_plain_state_has_builtin_types_only(value: Any, expected: Any) -> None:
    found = plain_state(value)
    assert repr(found) == repr(expected)  # equal, and of the same types all the way down
    assert type(found) is type(expected)


def test_plain_state_copies_tensors(tmp_path: Any) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    state = plain_state({"weights": [weight], "value": np.float64(1.0)})
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(loaded["weights"][0], torch.ones(2))
    with torch.no_grad():
        weight.zero_()
    assert torch.equal(state["weights"][0], torch.ones(2))
    assert not state["weights"][0].requires_grad
