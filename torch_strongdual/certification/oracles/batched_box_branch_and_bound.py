"""Box branch and bound whose cells are evaluated thousands at a time in torch: for a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from torch_strongdual._checks import check_positive
from torch_strongdual.certification.oracles._boxes.batched_forest import BatchBudget, BatchedForest
from torch_strongdual.certification.oracles._boxes.search import BoxSearch
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.abstract_two_layer_oracle import AbstractTwoLayerOracle
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem
from torch_strongdual.errors import InvalidInputError

__all__ = ["BatchedBoxBranchAndBound"]

FloatArray = NDArray[np.float64]

_BATCH_SIZES = {"cpu": 1024, "cuda": 65536}


@final
class BatchedBoxBranchAndBound(AbstractTwoLayerOracle):
    r"""Two-layer ReLU or leaky ReLU, any number of rows and outputs, rank up to about ten, on a GPU.

    The boxes and the linear bounds of :class:`~torch_strongdual.certification.oracles.BoxBranchAndBound`, many boxes at a
    time: a batch costs a few matrix products with all rows, then elementwise work in float64. There are no quadratic bounds,
    so it needs more boxes; on a CPU, where it runs too, it is slower.

    Boxes that wait lie on a stack and are taken from its top, so that memory stays within ``memory_bytes``. For a device and
    a batch size the search is deterministic. It answers within a batch of the deadline.

    Args:
        device: ``"cuda"`` if there is one, else ``"cpu"``, unless given.
        memory_bytes: For data, boxes that wait and the evaluation of a batch together; workspaces of the matrix library come
            on top.
        batch_size: Most boxes evaluated at once; by default 65536, on a CPU 1024.
        max_rank: Refuse higher ranks (the number of boxes grows exponentially with the rank).
        max_cells: Stop after this many boxes, rounded up to a batch, for reproducible budgets.
        progress: Called with the fraction of the surface proven and the U it is proven for, about ten times a second.

    Raises:
        InvalidInputError: If a size is not positive, or the device is not there.

    Example:
        >>> import torch
        >>> from torch_strongdual.certification.deadline import Deadline
        >>> from torch_strongdual.nn.branch_spec import BranchActivation, BranchSpec
        >>> spec = BranchSpec(widths=(3, 1, 1), activations=(BranchActivation(),))
        >>> oracle = BatchedBoxBranchAndBound(device="cpu")
        >>> state = oracle.init(spec, torch.eye(3))
        >>> found = oracle.bound(state, torch.tensor([[2.0], [1.0], [-1.0]]), BoundRequest(rtol=1e-3, deadline=Deadline(5.0)))
        >>> found.lower <= 5**0.5 + 1e-12 and 5**0.5 <= found.upper <= 1.002 * 5**0.5
        True

    References:
        The bounds are derived in docs/rounding.md and docs/dual_norms.md.
    """

    def __init__(
        self,
        *,
        device: str | torch.device | None = None,
        memory_bytes: int = 2**30,
        batch_size: int | None = None,
        max_rank: int = 14,
        max_cells: int | None = None,
        progress: Callable[[float, float], None] | None = None,
    ) -> None:
        self.device = _checked_device(device)
        self.batch_size = _BATCH_SIZES.get(self.device.type, 65536) if batch_size is None else batch_size
        check_positive("memory_bytes", memory_bytes)
        check_positive("batch_size", self.batch_size)
        if max_cells is not None:
            check_positive("max_cells", max_cells)
        self.memory_bytes = memory_bytes
        self.max_rank = max_rank
        self.max_cells = max_cells
        self.progress = progress

    def limits(self, rank: int, num_rows: int, num_outputs: int) -> str | None:
        """The rank matters, and one box has to fit into the memory."""
        if rank > self.max_rank:
            return f"rank {rank} is above max_rank={self.max_rank} of BatchedBoxBranchAndBound"
        if self._budget(rank, num_rows, num_outputs, is_scalar=num_outputs == 1).batch == 0:
            return (
                f"memory_bytes={self.memory_bytes} of BatchedBoxBranchAndBound is too small for "
                f"{num_rows} rows of rank {rank} and {num_outputs} outputs"
            )
        return None

    def maximise(self, problem: SphereProblem, request: BoundRequest, starts: FloatArray) -> SphereBound:
        """Prove ever smaller bounds until the request is met; see :meth:`AbstractTwoLayerOracle.maximise`."""
        if self._budget_of(problem).batch == 0:
            lower = float(np.max(problem.values(starts), initial=0.0)) if len(starts) else 0.0
            return SphereBound(upper=math.inf, lower=lower, points=starts, stats={"limited_by": "memory_bytes"})
        return BoxSearch(
            problem=problem,
            request=request,
            points=starts,
            plant=self._forest,
            max_cells=self.max_cells,
            progress=self.progress,
            short_search=20 * self.batch_size,
        ).bound()

    def _forest(self, problem: SphereProblem, is_short: bool) -> BatchedForest:
        del is_short  # a batch is a batch
        return BatchedForest(problem, device=self.device, budget=self._budget_of(problem))

    def _budget_of(self, problem: SphereProblem) -> BatchBudget:
        return self._budget(problem.rank, problem.num_rows, problem.num_outputs, is_scalar=problem.one_sided)

    def _budget(self, rank: int, num_rows: int, num_outputs: int, *, is_scalar: bool) -> BatchBudget:
        return BatchBudget.of(
            self.memory_bytes,
            self.batch_size,
            rank=rank,
            num_rows=num_rows,
            num_outputs=num_outputs,
            is_scalar=is_scalar,
        )


def _checked_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, which has to exist and to know float64."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, dtype=torch.float64, device=chosen)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise InvalidInputError(
            f"`device` is {device!r}, where float64 tensors cannot be made ({str(error).splitlines()[0]}); "
            "expected a device that is there, such as 'cuda' or 'cpu'. Leave it out to take what there is."
        ) from error
    return chosen
