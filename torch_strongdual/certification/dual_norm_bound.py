"""What an oracle returns: two-sided bounds on the dual norm, with the branches that attain the lower one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import Tensor

__all__ = ["DualNormBound", "Witness", "distinct_witnesses"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Witness:
    r"""A branch of unit norm whose features attain :math:`\|\Lambda' \phi(X)\|_2 =` ``value``.

    Args:
        weights: One float64 tensor a layer, shape ``(out, in)`` as in :class:`torch.nn.Linear` (first-layer bias as last
            column); every layer has Frobenius norm one. Widths are those of the branch.
        value: The attained value, in the units of ``path_decay``.
        gate_index: For gated branches, the branch whose gates are meant; ``None`` otherwise.
    """

    weights: tuple[Tensor, ...]
    value: float
    gate_index: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DualNormBound:
    r"""``lower <= kappa(dual_point) <= upper``.

    Args:
        upper: Proven, a rounding allowance included; ``inf`` when nothing is proven.
        lower: Attained by the best witness, up to rounding; 0 without witnesses.
        witnesses: Explicit branches, best first; distinct local maxima, not one repeated.
        stats: What ran, how long, what limited it. Strings and numbers only.
    """

    upper: float
    lower: float = 0.0
    witnesses: tuple[Witness, ...] = field(default=(), repr=False)
    stats: Mapping[str, float | str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        """Refuse NaN: a comparison with it would read as proof."""
        if math.isnan(self.upper) or math.isnan(self.lower):
            raise ValueError(f"A dual norm bound cannot be NaN: upper={self.upper}, lower={self.lower}.")

    @property
    def ratio(self) -> float:
        """``upper / lower``: 1 when the dual norm is known, ``inf`` when nothing is."""
        if self.upper == 0.0:
            return 1.0
        return self.upper / self.lower if self.lower > 0 else math.inf

    def looseness(self, least: float) -> float:
        """How far the proof is above what is attained, relatively, where values below ``least`` (positive) do not matter."""
        return self.upper / max(self.lower, least) - 1.0


def distinct_witnesses(witnesses: Iterable[Witness], *, number: int, cosine: float) -> list[Witness]:
    """The best few, best first; of those with the same gates whose layers all nearly coincide only the first.

    Args:
        witnesses: Of one architecture.
        number: Return no more than this.
        cosine: Layers whose inner product is above this coincide.
    """
    kept: list[Witness] = []
    for witness in sorted(witnesses, key=lambda w: -w.value):
        if len(kept) < number and not any(_coincide(witness, other, cosine) for other in kept):
            kept.append(witness)
    return kept


def _coincide(first: Witness, second: Witness, cosine: float) -> bool:
    if first.gate_index != second.gate_index:
        return False
    return all(float((a * b).sum()) > cosine for a, b in zip(first.weights, second.weights, strict=True))
