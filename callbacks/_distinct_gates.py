"""Gates as a set: which networks a bound speaks of does not depend on how many branches share a gate, nor on their order."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from torch_strongdual.nn import BranchSpec

__all__ = ["branch_of_each_gate", "gate_rows", "with_distinct_gates"]


def gate_rows(spec: BranchSpec) -> Tensor | None:
    """All gates of a branch as one row, shape ``(num_branches, numbers)``; ``None`` without gates."""
    vectors = [vectors for activation in spec.activations for vectors in activation.gate_vectors]
    return torch.cat(vectors, dim=1) + 0.0 if vectors else None  # a zero has no sign


def with_distinct_gates(spec: BranchSpec) -> BranchSpec:
    """The same architecture with each gate once, in the order of their first branches."""
    rows = gate_rows(spec)
    if rows is None:
        return spec
    firsts = branch_of_each_gate(rows, torch.unique(rows, dim=0)).sort().values
    activations = tuple(
        dataclasses.replace(activation, gate_vectors=tuple(vectors[firsts] for vectors in activation.gate_vectors))
        for activation in spec.activations
    )
    return dataclasses.replace(spec, activations=activations)


def branch_of_each_gate(rows: Tensor, gates: Tensor) -> Tensor:  # shape: (num_gates,) int64
    """Number of the first branch that has each of ``gates``.

    Args:
        rows: Gates of the branches, shape ``(num_branches, numbers)``.
        gates: Shape ``(num_gates, numbers)``; all of them are among ``rows``.
    """
    is_equal = torch.stack([(rows == gate).all(dim=1) for gate in gates])
    assert bool(is_equal.any(dim=1).all())
    return is_equal.to(torch.int64).argmax(dim=1)
