from __future__ import annotations

import dataclasses
import sys
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.certification import Deadline, TrainingProblem
from torch_strongdual.certification._clarabel import ClarabelSolution, clarabel_solution
from torch_strongdual.certification._restricted import cone_program
from torch_strongdual.certification._restricted.group_lasso import solve_group_lasso
from torch_strongdual.certification._restricted.restricted_dual import AtomSet, solve_restricted_dual
from torch_strongdual.nn import ParallelNet, ParallelWeights


def pose(loss: nn.Module, *, num_outputs: int = 1, bias: bool = False) -> tuple[TrainingProblem, AtomSet]:
    torch.manual_seed(0)
    inputs = torch.randn(25, 3, dtype=torch.float64)
    scores = torch.randn(25, num_outputs, dtype=torch.float64)
    targets: Tensor = scores
    if isinstance(loss, nn.CrossEntropyLoss):
        targets = scores.argmax(1)
    elif isinstance(loss, nn.BCEWithLogitsLoss):
        targets = (scores > 0).double()
    net = ParallelNet(
        nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, num_outputs, bias=bias), num_branches=8, dtype=torch.float64
    )
    problem = TrainingProblem.from_model(net, inputs, targets, loss=loss, path_decay=0.02)
    return problem, AtomSet.of_network(problem, ParallelWeights.from_module(net))


def reference(problem: TrainingProblem, atoms: Tensor, name: str) -> float:
    """The restricted primal in cvxpy, mean losses."""
    targets = problem.loss.targets.numpy()
    n, c = targets.shape
    coefficients = cp.Variable((atoms.shape[1], c))
    outputs = atoms.numpy() @ coefficients
    if problem.spec.output_bias:
        outputs = outputs + np.ones((n, 1)) @ cp.reshape(cp.Variable(c), (1, c), order="C")
    if name == "squared":
        loss = cp.sum_squares(outputs - targets) / (n * c)
    elif name == "absolute":
        loss = cp.sum(cp.abs(outputs - targets)) / (n * c)
    elif name == "huber":
        loss = 0.5 * cp.sum(cp.huber(outputs - targets, 1.0)) / (n * c)
    elif name == "logistic":
        loss = (cp.sum(cp.logistic(outputs)) - cp.sum(cp.multiply(targets, outputs))) / (n * c)
    else:
        loss = (cp.sum(cp.log_sum_exp(outputs, axis=1)) - cp.sum(cp.multiply(targets, outputs))) / n
    program = cp.Problem(cp.Minimize(loss + problem.dual_norm_limit * cp.sum(cp.norm(coefficients, 2, axis=1))))
    program.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    return float(program.value)


CASES = [
    (nn.MSELoss(), "squared", 1),
    (nn.MSELoss(), "squared", 3),
    (nn.HuberLoss(), "huber", 2),
    (nn.SmoothL1Loss(beta=1.0), "huber", 1),
    (nn.L1Loss(), "absolute", 1),
    (nn.BCEWithLogitsLoss(), "logistic", 1),
    (nn.CrossEntropyLoss(), "softmax", 3),
]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("loss", "name", "num_outputs"), CASES, ids=[f"{c[1]}-{c[2]}" for c in CASES])
def test_both_solvers_agree_with_the_truth_to_a_millionth(loss: nn.Module, name: str, num_outputs: int, bias: bool) -> None:
    problem, atoms = pose(loss, num_outputs=num_outputs, bias=bias)
    truth = reference(problem, atoms.features, name)
    for exact, solver in ((True, "cone program"), (False, "cone program" if name == "absolute" else "group lasso")):
        solution = solve_restricted_dual(problem, atoms, rtol=1e-8, deadline=Deadline(30.0), as_cone_program=exact)
        assert solution.solver == solver
        assert solution.objective == pytest.approx(truth, rel=1e-7 if solver == "cone program" else 1e-6)
        violation = float((atoms.features.T @ solution.candidate).norm(dim=1).max()) / problem.dual_norm_limit
        assert violation <= 1 + 1e-4
        dual = problem.loss.dual_objective(solution.candidate / max(violation, 1.0))
        assert truth * (1 - 2e-6) <= dual <= truth * (1 + 1e-6)


@pytest.mark.parametrize(("loss", "name", "num_outputs"), [case for case in CASES if case[1] != "absolute"])
def test_first_order_steps_make_tensors_where_their_data_are(loss: nn.Module, name: str, num_outputs: int) -> None:
    """A tensor without a device would be one of the default device, here one without numbers."""
    problem, atoms = pose(loss, num_outputs=num_outputs, bias=True)
    with torch.device("meta"):
        found = solve_group_lasso(problem, atoms.features, atoms.coefficients, rtol=1e-8, deadline=Deadline(30.0))
    assert found.relative_gap <= 1e-8
    assert found.coefficients.device == atoms.features.device


def repeated(atoms: AtomSet, copies: int) -> AtomSet:
    return AtomSet(
        features=atoms.features.repeat(1, copies),
        coefficients=atoms.coefficients.repeat(copies, 1) / copies,
        owners=copies * atoms.owners,
    )


@pytest.mark.parametrize(("loss", "name"), [(nn.MSELoss(), "squared"), (nn.L1Loss(), "absolute")])
@pytest.mark.parametrize(("copies", "solver"), [(80, "cone program"), (400, "group lasso")])
def test_large_programs_are_left_to_first_order_steps_unless_the_loss_has_kinks(
    copies: int, solver: str, loss: nn.Module, name: str
) -> None:
    problem, atoms = pose(loss)
    solution = solve_restricted_dual(problem, repeated(atoms, copies), rtol=1e-8, deadline=Deadline(60.0))
    assert solution.solver == ("cone program" if name == "absolute" else solver)
    assert solution.objective == pytest.approx(reference(problem, atoms.features, name), rel=1e-6)


def test_larger_programs_that_are_easy_need_no_cone_program() -> None:
    problem, atoms = pose(nn.MSELoss())
    solution = solve_restricted_dual(problem, repeated(atoms, 80), rtol=1e-1, deadline=Deadline(30.0))
    assert solution.solver == "group lasso"


def test_without_time_to_import_it_clarabel_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "clarabel", raising=False)
    problem, atoms = pose(nn.MSELoss())
    assert solve_restricted_dual(problem, atoms, rtol=1e-8, deadline=Deadline(0.4)).solver == "group lasso"


def test_without_clarabel_all_losses_are_solved_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    absolute, others = pose(nn.L1Loss())
    truth = reference(absolute, others.features, "absolute")
    monkeypatch.setitem(sys.modules, "clarabel", None)
    problem, atoms = pose(nn.MSELoss())
    assert solve_restricted_dual(problem, atoms, rtol=1e-8, deadline=Deadline(9.0)).solver == "group lasso"
    solution = solve_restricted_dual(absolute, others, rtol=1e-8, deadline=Deadline(9.0))
    assert solution.solver == "alternating directions"
    assert solution.objective == pytest.approx(truth, rel=1e-8)


@pytest.mark.parametrize("failure", ["unsolved", "not finite"])
def test_a_failure_of_the_cone_solver_is_made_up_for(monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    def failing(*args: Any, **options: Any) -> ClarabelSolution:
        found = clarabel_solution(*args, **options)
        if failure == "unsolved":
            return dataclasses.replace(found, is_solved=False)
        return dataclasses.replace(found, multipliers=np.full_like(found.multipliers, np.nan))

    monkeypatch.setattr(cone_program, "clarabel_solution", failing)
    smooth, atoms = pose(nn.MSELoss())
    assert solve_restricted_dual(smooth, atoms, rtol=1e-8, deadline=Deadline(9.0)).solver == "group lasso"
    absolute, atoms = pose(nn.L1Loss(), num_outputs=9)
    solution = solve_restricted_dual(absolute, atoms, rtol=1e-8, deadline=Deadline(9.0))
    assert solution.solver == "alternating directions"
    assert solution.objective == pytest.approx(reference(absolute, atoms.features, "absolute"), rel=1e-8)


def test_atoms_are_features_of_unit_branches_and_rebuild_the_outputs() -> None:
    problem, atoms = pose(nn.MSELoss(), num_outputs=2)
    torch.manual_seed(0)
    torch.randn(25, 3, dtype=torch.float64), torch.randn(25, 2, dtype=torch.float64)
    net = ParallelNet(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False), num_branches=8, dtype=torch.float64)
    outputs = ParallelWeights.from_module(net).outputs(problem.inputs)
    torch.testing.assert_close(atoms.features @ atoms.coefficients, outputs)
    norms = problem.inputs.norm(dim=1)
    assert bool((atoms.features.abs() <= norms[:, None] * (1 + 1e-12)).all())


def test_dead_branches_are_no_atoms() -> None:
    problem, _ = pose(nn.MSELoss())
    net = ParallelNet(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False), num_branches=4, dtype=torch.float64)
    with torch.no_grad():
        net.get_parameter("2.weight")[1:] = 0.0
    atoms = AtomSet.of_network(problem, ParallelWeights.from_module(net))
    assert atoms.features.shape[1] <= 2
