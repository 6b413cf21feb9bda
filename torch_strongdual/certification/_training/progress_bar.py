"""A progress bar for optimisation to a certificate, where tqdm is installed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch_strongdual.certification.optimization_result import OptimizationRecord

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(is_shown: bool, rtol: float) -> Iterator[Callable[[OptimizationRecord], None]]:
    """Yield a function that shows records; it does nothing if no bar is wanted or tqdm is not installed.

    The bar is full when the gap has shrunk from all of the objective to ``rtol``, on a logarithmic scale.

    Args:
        is_shown: Whether a bar is wanted.
        rtol: Relative gap to reach.
    """
    tqdm = _find_tqdm() if is_shown else None
    if tqdm is None:
        yield lambda record: None
        return
    whole = max(-math.log10(rtol), 0.1)
    with tqdm(total=whole, bar_format="{desc} |{bar}| {elapsed}") as bar:

        def show(record: OptimizationRecord) -> None:
            gap = record.objective - record.dual_bound
            relative = gap / abs(record.objective) if record.objective != 0.0 else math.inf
            bar.set_description_str(
                f"objective {record.objective:.6g}, bound {record.dual_bound:.6g}, gap {100 * relative:.2g} %, "
                f"{record.num_branches} branches",
                refresh=False,
            )
            bar.n = whole if relative <= rtol else max(0.0, -math.log10(relative)) if math.isfinite(relative) else 0.0
            bar.refresh()

        yield show


def _find_tqdm() -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm
