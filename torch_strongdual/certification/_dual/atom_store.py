"""Branches found during a training run, kept as atoms of the restricted dual while they are of use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_strongdual.certification.dual_norm_bound import Witness

__all__ = ["AtomStore"]

_CAPACITY = 256
_PATIENCE = 4  # calls in a row without weight after which an atom leaves
_Key = tuple[int, tuple[bytes, ...]]

_SAME = 1e-9  # branches this close are one


@dataclass(slots=True, eq=False)
class _Atom:
    """A unit branch, and for how many calls it has carried no weight."""

    witness: Witness
    idle: int


class AtomStore:
    """Witnesses without duplicates; those that carry no weight for several calls leave, and the most idle of too many.

    Example:
        >>> len(AtomStore().witnesses)
        0
    """

    def __init__(self) -> None:
        self._atoms: dict[_Key, _Atom] = {}  # oldest first

    @property
    def witnesses(self) -> tuple[Witness, ...]:
        """All that are kept, oldest first."""
        return tuple(atom.witness for atom in self._atoms.values())

    def add(self, witnesses: Iterable[Witness]) -> list[Witness]:
        """Keep those that are not known yet, and return them."""
        new = []
        for witness in witnesses:
            if (key := _key(witness)) not in self._atoms:
                self._atoms[key] = _Atom(witness, 0)
                new.append(witness)
        while len(self._atoms) > _CAPACITY:
            del self._atoms[max(self._atoms, key=lambda key: self._atoms[key].idle)]  # of equals the oldest
        return new

    def age(self, in_use: Iterable[Witness]) -> None:
        """End a call in which only the atoms ``in_use`` carried weight."""
        used = set(map(id, in_use))
        for atom in self._atoms.values():
            atom.idle = 0 if id(atom.witness) in used else atom.idle + 1
        self._atoms = {key: atom for key, atom in self._atoms.items() if atom.idle < _PATIENCE}

    def copy(self) -> AtomStore:
        """The same witnesses, which are known by identity, with ages of their own from now on."""
        other = AtomStore()
        other._atoms = {key: _Atom(atom.witness, atom.idle) for key, atom in self._atoms.items()}
        return other

    def state(self) -> list[tuple[list[Tensor], float, int, int]]:
        """Weights, value, gate and idle calls of each atom."""
        return [
            (list(a.witness.weights), a.witness.value, -1 if a.witness.gate_index is None else a.witness.gate_index, a.idle)
            for a in self._atoms.values()
        ]

    @classmethod
    def from_state(cls, state: Iterable[Any]) -> AtomStore:
        """What :meth:`state` gave."""
        restored = cls()
        for weights, value, gate, idle in state:
            witness = Witness(weights=tuple(weights), value=value, gate_index=None if gate < 0 else gate)
            restored._atoms[_key(witness)] = _Atom(witness, int(idle))
        return restored


def _key(witness: Witness) -> _Key:
    """Equal for branches that are equal up to rounding, but for unlucky ones; layers have norm one."""
    gate = -1 if witness.gate_index is None else witness.gate_index
    return gate, tuple((weight / _SAME).round().to(torch.int64).numpy().tobytes() for weight in witness.weights)
