from __future__ import annotations

import torch

from torch_strongdual.certification import Witness
from torch_strongdual.certification._dual.atom_store import AtomStore


def witness(seed: int) -> Witness:
    first = torch.randn(1, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Witness(weights=(first / first.norm(), torch.ones(1, 1, dtype=torch.float64)), value=float(seed))


def test_a_branch_found_twice_is_kept_once() -> None:
    store = AtomStore()
    assert len(store.add([witness(0), witness(1), witness(0)])) == 2
    again = witness(1)
    shifted = Witness(weights=(again.weights[0] * (1 + 1e-13), again.weights[1]), value=1.0)
    assert store.add([shifted]) == []
    assert len(store.add([Witness(weights=again.weights, value=1.0, gate_index=2)])) == 1


def test_atoms_without_weight_leave_after_several_calls() -> None:
    store = AtomStore()
    useful, useless = store.add([witness(0), witness(1)])
    for _ in range(3):
        store.age([useful])
        assert store.witnesses == (useful, useless)
    store.age([useful])
    assert store.witnesses == (useful,)


def test_weight_carried_again_resets_the_age() -> None:
    store = AtomStore()
    (atom,) = store.add([witness(0)])
    for in_use in ([], [], [], [atom], [], [], []):
        store.age(in_use)
    assert store.witnesses == (atom,)


def test_memory_is_bounded_and_the_idle_leave_first() -> None:
    store = AtomStore()
    early = store.add(witness(seed) for seed in range(200))
    store.age(early[:100])
    store.add(witness(seed) for seed in range(200, 400))
    assert len(store.witnesses) == 256
    assert store.witnesses[:56] == tuple(early[44:100])


def test_state_round_trip() -> None:
    store = AtomStore()
    store.add([witness(0), witness(1)])
    store.age([])
    restored = AtomStore.from_state(store.state())
    assert restored.state() == store.state()


def test_a_copy_holds_the_same_witnesses_but_ages_on_its_own() -> None:
    store = AtomStore()
    store.add([witness(0), witness(1)])
    other = store.copy()
    assert all(one is same for one, same in zip(store.witnesses, other.witnesses, strict=True))
    for _ in range(4):
        other.age([])
    assert other.witnesses == ()
    assert len(store.witnesses) == 2
