"""Why the bound on deep branches is not tighter, in words."""

from __future__ import annotations

from torch_strongdual.certification.oracles._depth.side_memory import SideBound
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest

__all__ = ["reason_of"]


def reason_of(sides: list[SideBound], request: BoundRequest, num_activations: int) -> str:
    """Why the bound is not tighter: a leaf, the time for the search, or the relaxation itself."""
    worst = max(sides, key=lambda side: side.upper, default=None)
    if worst is not None and worst.cells:
        return f"time: cases by the signs of later pre-activations are open ({len(worst.cells)} so far)"
    if worst is not None and worst.limited_by:
        return f"the proof of the first layer ({worst.limited_by})" if worst.search else worst.limited_by
    if any(side.search is not None and not side.search.has_converged for side in sides):
        return "time: the lines in place of the ReLUs of later layers were still getting better"
    if request.deadline.expired:
        return "time"
    several = "groups" if num_activations == 2 else "pairs"
    return (
        f"the relaxation of depth (lines and {several} of samples in place of concave kinks), which is at its best: more time "
        "will not help, more samples or a larger path_decay would"
    )
