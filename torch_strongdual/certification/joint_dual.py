"""A dual point chosen together with its relaxed dual norm, where rescaling a residual wastes what the relaxation loses."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles._doubly_nonnegative.joint_splitting import JointSplitting
from torch_strongdual.certification.oracles.row_space import RowSpace
from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.losses import HuberFamilyLoss

__all__ = ["joint_dual_point"]

_CHECK = 20  # iterations between two looks at progress


def joint_dual_point(
    problem: TrainingProblem,
    *,
    deadline: Deadline,
    rtol: float = 1e-3,
    max_iterations: int = 2000,
    max_rows: int = 500,
    device: torch.device | str = "cpu",
) -> Tensor | None:  # shape: (num_samples, 1)
    r"""Approximate maximiser of :math:`D(\Lambda)` where doubly nonnegative bounds of both signs are at most ``path_decay``.

    Where that relaxation is loose, the residual of even the best network has to be scaled down by all that it loses; this
    point spends the loss where it costs least. It is a *candidate*: an oracle has to bound its dual norm, as of any other.

    Args:
        problem: Two-layer ReLU or leaky ReLU branches (or deeper with one activation), one output, squared or Huber loss.
        deadline: When to stop.
        rtol: Stop when the dual point changes by less than this, relatively, in twenty iterations.
        max_iterations: At most so many.
        max_rows: Return ``None`` for more samples: an iteration takes two eigendecompositions of their number.
        device: Where the iterations run.

    Returns:
        A point in the dual domain, balanced if the output has a bias; ``None`` if the problem is of another kind, or numbers
        are not finite.

    Example:
        >>> from torch import nn
        >>> from torch_strongdual.nn import ParallelNet
        >>> net = ParallelNet(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False), num_branches=2)
        >>> x, y = torch.eye(2), torch.tensor([[3.0], [4.0]])
        >>> problem = TrainingProblem.from_model(net, x, y, loss=nn.MSELoss(reduction="sum"), path_decay=1.0)
        >>> joint_dual_point(problem, deadline=Deadline(5.0)).norm().round(decimals=2).item()
        1.0
    """
    loss, spec = problem.loss, problem.spec
    slopes = [a.negative_slope for a in spec.activations if not a.is_identity]
    if not isinstance(loss, HuberFamilyLoss) or loss.width == 0.0 or loss.num_outputs != 1:
        return None
    if spec.is_gated or spec.patch_map is not None or len(slopes) != 1 or slopes[0] < 0.0 or loss.num_samples > max_rows:
        return None
    rows = RowSpace.of(spec.branch_inputs(problem.inputs).numpy()).rows
    lengths = np.linalg.norm(rows, axis=1)
    kept = lengths > 1e-100 * max(float(np.max(lengths, initial=0.0)), 1e-200)
    targets = (loss.targets - problem.null_outputs() if spec.output_bias else loss.targets)[:, 0].numpy()
    units = float(np.mean(lengths[kept])) if kept.any() else 0.0, float(np.linalg.norm(targets))
    curvature = 1.0 / (loss.normalizer * loss.width)
    scale = curvature * units[1]  # of the dual point
    if not (kept.any() and all(0.0 < unit < math.inf for unit in (*units, scale, scale * units[0]))):
        return None
    splitting = JointSplitting(
        rows[kept] / lengths[kept, None],
        lengths[kept] / units[0],
        targets[kept] / units[1],
        slope=slopes[0],
        path_decay=problem.dual_norm_limit / (scale * units[0]),
        slope_bound=loss.slope_bound / loss.normalizer / scale,
        has_bias=spec.output_bias,
        device=torch.device(device),
    )
    _run(splitting, rtol=rtol, max_iterations=max_iterations, deadline=deadline)
    point = np.clip(curvature * targets, -loss.slope_bound / loss.normalizer, loss.slope_bound / loss.normalizer)
    point[kept] = scale * splitting.dual_point.cpu().numpy()
    candidate = torch.from_numpy(point)[:, None]
    if not bool(torch.isfinite(candidate).all()):
        return None
    return loss.balanced(candidate) if spec.output_bias else candidate


def _run(splitting: JointSplitting, *, rtol: float, max_iterations: int, deadline: Deadline) -> None:
    """Iterate until the dual point settles."""
    before = splitting.dual_point
    for iteration in range(1, max_iterations + 1):
        if deadline.expired:
            return
        try:
            splitting.step()
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return
        if iteration % _CHECK == 0:
            moved = float(torch.linalg.norm(splitting.dual_point - before))
            if moved <= rtol * float(torch.linalg.norm(splitting.dual_point)):
                return
            before = splitting.dual_point
            splitting.balance()
