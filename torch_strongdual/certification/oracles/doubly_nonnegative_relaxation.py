"""The doubly nonnegative relaxation: the tightest bound for a few hundred samples of a rank too high for boxes."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._doubly_nonnegative.scaled_lift import ScaledLift
from torch_strongdual.certification.oracles._doubly_nonnegative.sign_tree import SignTree
from torch_strongdual.certification.oracles._recent import Recent
from torch_strongdual.certification.oracles.abstract_one_output_oracle import AbstractOneOutputOracle
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.local_ascent import local_maxima
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem

__all__ = ["DoublyNonnegativeRelaxation"]

FloatArray = NDArray[np.float64]

_KEPT = 2  # searches that stopped early: their starting points take memory, and the two signs of a dual point are two


@final
class DoublyNonnegativeRelaxation(AbstractOneOutputOracle):
    r"""Upper bounds from moments of :math:`(1, u, z, s)`, :math:`z = (Xu)_+`, :math:`s = (-Xu)_+`, refined by splits on signs.

    The moments are semidefinite, all products of entries of z and s are nonnegative, :math:`z_i s_i = 0`, and
    :math:`\|E[u z_i]\| \le E[z_i]`, :math:`\|E[u s_i]\| \le E[s_i]` because u is a unit vector. First-order iterations look for
    multipliers of these constraints, and *any* multipliers give a bound, proven by a Cholesky factorisation in float64 on the
    CPU: the oracle can stop at any time, and no accuracy of the iterations is relied on. Where the relaxation is not tight
    enough, the sphere is split at the sign of the sample that is least decided, best-first.

    Two methods find multipliers: alternating projections, which take an eigendecomposition of order 1 + rank + number of
    samples an iteration, and for more samples an augmented Lagrangian in a factor of rank + 8 columns, where only products that
    are violated get multipliers. ``stats["method"]`` says which it was. Memory grows with the square of the number of samples,
    a proof takes a time that grows with its cube. Asked about the same dual point again, the search goes on where it stopped,
    unless ``max_nodes`` is given.

    Use it for data of rank above eight or so and up to a thousand samples. The fewer samples for the rank, and the larger
    ``path_decay``, the tighter the relaxation; splitting gains much while the relaxation is within some 20 %.

    Several outputs of ReLU branches are bounded at once: their weights v join the moments, and parts are split at signs of v
    along principal axes, too. Of leaky ReLU branches the bound is :math:`(\sum_j \kappa_j^2)^{1/2}` over the outputs' own
    bounds, for two outputs also from a fan of directions, which loses at most 2 %.

    Args:
        max_rows: Refuse more samples.
        max_nodes: Solve at most so many relaxations, for reproducible budgets; 1 for no splitting, ``None`` for no limit but
            the deadline.
        device: Where alternating projections run.
        low_rank_rows: From so many samples on, on a CPU, use the low-rank factor.

    Example:
        >>> import torch
        >>> from torch_strongdual.certification.deadline import Deadline
        >>> from torch_strongdual.nn.branch_spec import BranchActivation, BranchSpec
        >>> spec = BranchSpec(widths=(3, 1, 1), activations=(BranchActivation(),))
        >>> oracle = DoublyNonnegativeRelaxation()
        >>> state = oracle.init(spec, torch.eye(3))
        >>> found = oracle.bound(state, torch.tensor([[3.0], [4.0], [-2.0]]), BoundRequest(deadline=Deadline(5.0)))
        >>> found.lower <= 5.0 + 1e-9 and 5.0 <= found.upper <= 5.06
        True

    References:
        Burer, "On the copositive representation of binary and continuous nonconvex quadratic programs", Math. Prog. 120, 2009.
        Burer, Monteiro, "A nonlinear programming algorithm for solving semidefinite programs via low-rank factorization",
        Math. Prog. 95, 2003.
    """

    effort = "nodes"

    def __init__(
        self,
        *,
        max_rows: int = 1000,
        max_nodes: int | None = None,
        device: torch.device | str = "cpu",
        low_rank_rows: int = 80,
    ) -> None:
        self.max_rows = max_rows
        self.max_nodes = max_nodes
        self.device = torch.device(device)
        self.low_rank_rows = low_rank_rows
        self._trees = Recent[bytes, SignTree](_KEPT)

    def limits(self, rank: int, num_rows: int, num_outputs: int) -> str | None:
        """The number of samples matters, not the rank."""
        if num_rows > self.max_rows:
            return f"{num_rows} samples are more than max_rows={self.max_rows} of DoublyNonnegativeRelaxation"
        return None

    def maximise(self, problem: SphereProblem, request: BoundRequest, starts: FloatArray) -> SphereBound:
        """Bound the maximum, that of several outputs as one; see :meth:`AbstractTwoLayerOracle.maximise`."""
        if problem.num_outputs == 1 or problem.linear.any() or not problem.is_finite or self.device.type != "cpu":
            return super().maximise(problem, request, starts)
        points = starts if len(starts) else local_maxima(problem, deadline=request.deadline.fraction(0.3))
        return self.one_sided(problem, request, points)

    def _is_low_rank(self, num_rows: int) -> bool:
        return self.device.type == "cpu" and num_rows >= self.low_rank_rows

    def one_sided(self, problem: SphereProblem, request: BoundRequest, starts: FloatArray) -> SphereBound:
        """See :meth:`AbstractOneOutputOracle.one_sided`."""
        if problem.rank == 0 or not (problem.linear.any() or (problem.duals > 0).any() or problem.num_outputs > 1):
            return SphereBound(upper=0.0, lower=0.0, points=np.zeros((0, problem.rank)))
        scaled = ScaledLift.of(problem)
        tree = self._tree(problem, scaled, request, starts)
        nodes, iterations = tree.nodes, tree.iterations
        tree.run()
        if self.max_nodes is None:
            self._trees.put(problem.fingerprint(), tree)
        values = problem.values(tree.points)
        points = tree.points[np.argsort(-values, kind="stable")]
        upper, lower = scaled.upper(tree.upper), float(np.max(values, initial=0.0))
        stats: dict[str, float | str] = {"nodes": float(tree.nodes - nodes), "iterations": float(tree.iterations - iterations)}
        is_low_rank = scaled.lift.bilinear is not None or self._is_low_rank(scaled.lift.num_rows)
        stats["method"] = "low-rank factor" if is_low_rank else "alternating projections"
        if not (tree.is_done() or request.is_met(upper, lower)):
            stats["limited_by"] = tree.limited_by
        return SphereBound(upper=upper, lower=lower, points=points, stats=stats)

    def _tree(self, problem: SphereProblem, scaled: ScaledLift, request: BoundRequest, starts: FloatArray) -> SignTree:
        """The search of this problem that was stopped before, or a new one."""
        known = self._trees.take(problem.fingerprint()) if self.max_nodes is None else None
        if known is not None:
            known.ask(scaled.request(request), starts)
            return known
        return SignTree(
            scaled.lift,
            scaled.request(request),
            starts,
            upper=scaled.crude_upper,
            max_nodes=self.max_nodes,
            device=self.device,
            is_low_rank=scaled.lift.bilinear is not None or self._is_low_rank(scaled.lift.num_rows),
        )
