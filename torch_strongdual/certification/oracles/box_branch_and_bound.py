"""Branch and bound over boxes on the faces of a cube: tight proven bounds for data of small rank, any number of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_strongdual.certification.oracles._boxes.compilation import compile_kernels
from torch_strongdual.certification.oracles._boxes.forest import BoxForest
from torch_strongdual.certification.oracles._boxes.search import BoxSearch
from torch_strongdual.certification.oracles._boxes.unfinished import UnfinishedSearches
from torch_strongdual.certification.oracles._reduced_state import ReducedState
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.abstract_two_layer_oracle import AbstractTwoLayerOracle
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem
from torch_strongdual.nn.branch_spec import BranchSpec

__all__ = ["BoxBranchAndBound"]

FloatArray = NDArray[np.float64]


@final
class BoxBranchAndBound(AbstractTwoLayerOracle):
    r"""Two-layer ReLU or leaky ReLU, any number of rows and outputs, rank up to about ten.

    ``w`` is positively homogeneous, so it is enough to compare :math:`\|w(p)\|` with :math:`U \|p\|` on the surface of a
    cube in principal-axis coordinates. A box on a face is proven by linear bounds on every row whose sign is undecided in
    it, and halved otherwise, depth first, until the whole surface is proven for U or a counterexample is found. Vector
    outputs are split along the direction of w at the box's centre: no search over output directions.

    For a number of threads and a budget of cells the search is deterministic; its memory is the depth times the number of
    rows for each thread. It answers within about 0.1 s of the
    deadline, with the best U proven until then. Asked the same question again, it goes on where it stopped (unless
    ``max_cells`` is set).

    Args:
        max_rank: Refuse higher ranks (the number of boxes grows exponentially with the rank).
        max_cells: Stop after this many boxes, for reproducible budgets; ``None`` for no limit but the deadline.
        num_threads: Threads to search with; ``None`` for as many as torch uses.
        progress: Called with the fraction of the surface proven and the U it is proven for, about ten times a second.
        comes_down: Whether a goal that seems out of reach in time is approached by way of larger bounds. Otherwise it is tried
            at once, and the bound raised where that takes too long: best where the tolerance was chosen to fit the time.

    Example:
        >>> import torch
        >>> from torch_strongdual.certification.deadline import Deadline
        >>> from torch_strongdual.nn.branch_spec import BranchActivation, BranchSpec
        >>> spec = BranchSpec(widths=(3, 1, 1), activations=(BranchActivation(),))
        >>> oracle = BoxBranchAndBound()
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
        max_rank: int = 14,
        max_cells: int | None = None,
        num_threads: int | None = None,
        progress: Callable[[float, float], None] | None = None,
        comes_down: bool = True,
    ) -> None:
        self.max_rank = max_rank
        self.max_cells = max_cells
        self.num_threads = torch.get_num_threads() if num_threads is None else num_threads
        self.progress = progress
        self.comes_down = comes_down
        self._unfinished = UnfinishedSearches()

    def init(self, spec: BranchSpec, inputs: Tensor) -> ReducedState:
        """Reduce the inputs to their row space, and compile."""
        state = super().init(spec, inputs)
        compile_kernels(spec.out_features)
        return state

    def limits(self, rank: int, num_rows: int, num_outputs: int) -> str | None:
        """Only the rank matters."""
        if rank > self.max_rank:
            return f"rank {rank} is above max_rank={self.max_rank} of BoxBranchAndBound"
        return None

    def maximise(self, problem: SphereProblem, request: BoundRequest, starts: FloatArray) -> SphereBound:
        """Prove ever smaller bounds until the request is met; see :meth:`AbstractTwoLayerOracle.maximise`."""
        return BoxSearch(
            problem=problem,
            request=request,
            points=starts,
            plant=self._forest,
            max_cells=self.max_cells,
            progress=self.progress,
            # A budget of cells is for answers that can be repeated, whatever was asked before.
            unfinished=self._unfinished if self.max_cells is None else UnfinishedSearches(),
            resumes_short=self.num_threads == 1,
            comes_down=self.comes_down,
        ).bound()

    def expected_seconds(self, problem: SphereProblem, request: BoundRequest, starts: FloatArray) -> float:
        """Estimate of the time :meth:`maximise` will take to meet the request, for choosing; it takes a moment.

        What is searched for it is not lost: :meth:`maximise` goes on with it.

        Args:
            problem: Of the size that :meth:`limits` accepts.
            request: When to stop.
            starts: Unit vectors to try first, shape ``(m, rank)``.

        Returns:
            Seconds from now; infinite where nothing can be said.
        """
        return BoxSearch(
            problem=problem,
            request=request,
            points=starts,
            plant=lambda reduced, _: self._forest(reduced, False),
            unfinished=self._unfinished,
        ).seconds_to_goal()

    def _forest(self, problem: SphereProblem, is_short: bool) -> BoxForest:
        """Threads are not worth starting for a search that may be over in a moment."""
        return BoxForest(problem, num_threads=1 if is_short else self.num_threads)
