from __future__ import annotations

import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.certification import (
    Deadline,
    DualSolver,
    OptimizationStop,
    PathDecayTable,
    TrainingProblem,
    certify,
    max_path_decay,
    path_decay_path,
)
from torch_strongdual.errors import InvalidInputError, MissingDependencyError, UnsupportedModelError
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import GatedReLU, ParallelNet, ParallelWeights

from ..references.convex_program import convex_program_optimum, gated_program_optimum
from .test_optimize import Interrupting


def data(num_outputs: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(8, num_outputs, generator=generator, dtype=torch.float64)


def relu(num_branches: int = 2) -> ParallelNet:
    layers = nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)
    return ParallelNet(*layers, num_branches=num_branches, dtype=torch.float64)


def test_every_strength_meets_its_optimum() -> None:
    inputs, targets = data()
    limit = max_path_decay(relu(), inputs, targets, loss=HalfSquaredLoss()).lower
    table = path_decay_path(relu(), inputs, targets, loss=HalfSquaredLoss(), fractions=(0.1, 0.8, 0.3))
    assert [row.path_decay / limit for row in table.rows] == pytest.approx([0.8, 0.3, 0.1], rel=0.02)
    for row in table.rows:
        truth = convex_program_optimum(inputs.numpy(), targets.numpy(), "squared", row.path_decay).value
        certificate = row.result.certificate
        assert certificate.is_certified
        assert truth * (1 - 1.1e-3) <= certificate.dual_bound <= truth * (1 + 1e-7)
        assert truth * (1 - 1e-7) <= certificate.primal_value <= truth * (1 + 1.1e-3)
        assert row.loss + row.path_decay * row.penalty == pytest.approx(certificate.primal_value, rel=1e-10)
        assert certificate.path_decay == row.path_decay
    assert all(weaker.penalty > stronger.penalty for stronger, weaker in pairwise(table.rows))
    assert all(weaker.loss < stronger.loss for stronger, weaker in pairwise(table.rows))


def test_gates_keep_their_numbers_from_one_strength_to_the_next() -> None:
    inputs, targets = data(2)
    layers = nn.Linear(2, 2, bias=False), GatedReLU(2), nn.Linear(2, 2, bias=False)
    net = ParallelNet(*layers, num_branches=6, dtype=torch.float64)
    masks = net.branch_spec.gate_masks(inputs)
    assert masks is not None
    for row in path_decay_path(net, inputs, targets, loss=HalfSquaredLoss(), path_decays=[1.0, 0.3, 0.05]).rows:
        truth = gated_program_optimum(inputs.numpy(), targets.numpy(), masks.numpy(), "squared", row.path_decay).value
        assert row.result.certificate.primal_value == pytest.approx(truth, rel=1.1e-3)
        assert row.result.certificate.dual_bound == pytest.approx(truth, rel=1.1e-3)


def test_a_rescaled_dual_point_is_a_bound_at_once() -> None:
    inputs, targets = data()
    net = relu(20)
    problem = TrainingProblem.from_model(net, inputs, targets, loss=HalfSquaredLoss(), path_decay=0.5)
    solver = DualSolver(problem)
    solver.step(ParallelWeights.from_module(net), rtol=1e-6, deadline=Deadline(10.0))
    for path_decay in (0.45, 0.6):
        warm = solver.at_path_decay(path_decay)
        truth = convex_program_optimum(inputs.numpy(), targets.numpy(), "squared", path_decay).value
        assert 0.8 * truth <= warm.best.value <= truth * (1 + 1e-7)
        assert warm.best.dual_norm_upper <= path_decay
        assert warm.witnesses == solver.witnesses
    assert solver.problem.path_decay == 0.5


def test_the_absolute_loss_is_certified_at_every_strength_of_a_path() -> None:
    """Branches found at one strength, or dropped by a refit, are offered again: without them this path stayed open by 2 %."""
    generator = torch.Generator().manual_seed(901)
    inputs = torch.randn(14, 2, generator=generator, dtype=torch.float64)
    targets = torch.randn(14, 1, generator=generator, dtype=torch.float64)
    torch.manual_seed(1)
    table = path_decay_path(relu(4), inputs, targets, loss=nn.L1Loss(), fractions=(0.7, 0.4, 0.2, 0.1, 0.05, 0.01), rtol=1e-4)
    assert [row.result.stop for row in table.rows] == 6 * [OptimizationStop.CERTIFIED]
    weakest = table.rows[-1]
    truth = convex_program_optimum(inputs.numpy(), targets.numpy(), "absolute", 14 * weakest.path_decay).value / 14
    assert weakest.result.certificate.dual_bound <= truth * (1 + 1e-6)
    assert truth * (1 - 1e-6) <= weakest.result.certificate.primal_value <= truth * (1 + 1.1e-4)


def test_the_table_prints_and_the_network_is_left_alone() -> None:
    inputs, targets = data()
    net = relu()
    before = [weight.detach().clone() for weight in net.branch_weights()]
    table = path_decay_path(net, inputs, targets, loss=nn.MSELoss(), fractions=(0.5, 0.2))
    lines = str(table).splitlines()
    assert len(lines) == 3
    assert lines[0].split()[:2] == ["path_decay", "objective"]
    assert len({len(line) for line in lines}) == 1
    assert all(torch.equal(*pair) for pair in zip(net.branch_weights(), before, strict=True))
    row = table.rows[-1]
    again = certify(row.result.net, inputs, targets, loss=nn.MSELoss(), path_decay=row.path_decay, rtol=1e-3)
    assert again.primal_value == row.result.certificate.primal_value


def test_the_plot_shows_the_numbers_of_the_table(tmp_path: Path) -> None:
    table = path_decay_path(relu(), *data(), loss=nn.MSELoss(), fractions=(0.5, 0.2))
    axes = table.plot()
    objective, bound, loss = axes.get_lines()
    assert np.asarray(objective.get_xdata()).tolist() == [row.path_decay for row in table.rows]
    assert np.asarray(objective.get_ydata()).tolist() == [row.result.certificate.primal_value for row in table.rows]
    assert np.asarray(bound.get_ydata()).tolist() == [row.result.certificate.dual_bound for row in table.rows]
    assert np.asarray(loss.get_ydata()).tolist() == [row.loss for row in table.rows]
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(tmp_path / "path.png")
    assert matplotlib.image.imread(tmp_path / "path.png").shape[0] > 300
    assert table.plot(axes) is axes


def test_the_plot_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match="pip install matplotlib"):
        PathDecayTable(rows=()).plot()


def test_an_interrupt_ends_the_path() -> None:
    inputs, targets = data()
    arguments: dict[str, Any] = {"loss": HalfSquaredLoss(), "path_decays": [1.0, 0.5, 0.1]}
    table = path_decay_path(relu(), inputs, targets, oracle=Interrupting(1), rtol=1e-14, **arguments)
    assert len(table.rows) == 1
    assert table.rows[0].result.stop is OptimizationStop.INTERRUPTED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fractions": ()}, "fractions"),
        ({"fractions": (0.5, 0.0)}, r"fractions\[1\]"),
        ({"path_decays": [math.inf]}, r"path_decays\[0\]"),
        ({"path_decays": [-1.0]}, r"path_decays\[0\]"),
        ({"rtol": math.inf}, "rtol"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        path_decay_path(relu(), *data(), loss=nn.MSELoss(), **changes)


def test_other_modules_are_refused() -> None:
    net: Any = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1))
    with pytest.raises(UnsupportedModelError, match="ParallelNet"):
        path_decay_path(net, *data(), loss=nn.MSELoss())
