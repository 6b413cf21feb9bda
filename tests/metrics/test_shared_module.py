from __future__ import annotations

import copy
import pickle

from torch import nn

from torch_strongdual.metrics._shared_module import SharedModule


def test_copies_share_the_module_unless_it_is_copied_along() -> None:
    module = nn.Linear(2, 1)
    shared = SharedModule(module)
    assert copy.copy(shared).module is module
    assert copy.deepcopy(shared).module is module
    first, second = copy.deepcopy((module, shared))
    assert second.module is first
    assert first is not module


def test_pickling_copies_the_module() -> None:
    shared = SharedModule(nn.Linear(2, 1))
    restored = pickle.loads(pickle.dumps(shared))
    assert restored.module is not shared.module
    assert restored.module.weight.equal(shared.module.weight)
