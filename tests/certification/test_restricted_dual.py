from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.certification import Deadline, TrainingProblem
from torch_strongdual.certification.restricted_dual import AtomSet, solve_restricted_dual
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
    (nn.L1Loss(), "absolute", 1),
    (nn.BCEWithLogitsLoss(), "logistic", 1),
    (nn.CrossEntropyLoss(), "softmax", 3),
]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("loss", "name", "num_outputs"), CASES, ids=[f"{c[1]}-{c[2]}" for c in CASES])
def test_agrees_with_a_cone_solver_to_a_millionth(loss: nn.Module, name: str, num_outputs: int, bias: bool) -> None:
    problem, atoms = pose(loss, num_outputs=num_outputs, bias=bias)
    solution = solve_restricted_dual(problem, atoms, rtol=1e-8, deadline=Deadline(30.0))
    truth = reference(problem, atoms.features, name)
    violation = float((atoms.features.T @ solution.candidate).norm(dim=1).max()) / problem.dual_norm_limit
    dual = problem.loss.dual_objective(solution.candidate / max(violation, 1.0))
    assert dual <= truth * (1 + 1e-6)
    assert dual >= truth * (1 - 2e-6)
    assert violation <= 1 + 1e-4
    if solution.solver == "group lasso":
        assert solution.objective == pytest.approx(truth, rel=1e-6)


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
