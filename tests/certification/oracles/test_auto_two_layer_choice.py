"""How AutoTwoLayerOracle learns from the problem at hand: searches in reach, relaxations that have nothing more to say."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.certification.oracles._random_problems import one_sided_problem
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles import BoxBranchAndBound, PolynomialSandwich
from torch_strongdual.certification.oracles._boxes.compilation import compile_kernels
from torch_strongdual.certification.oracles._choice.expected_looseness import expected_looseness
from torch_strongdual.certification.oracles._choice.spent_oracles import SpentOracles
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.abstract_two_layer_oracle import AbstractTwoLayerOracle, two_sided_bound
from torch_strongdual.certification.oracles.auto_two_layer_oracle import AutoTwoLayerOracle
from torch_strongdual.certification.oracles.local_ascent import local_maxima
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem

NO_POINTS = np.zeros((0, 8))


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    compile_kernels(1)


def problem_of(seed: int, *, rank: int = 8, num_rows: int = 60) -> SphereProblem:
    return one_sided_problem(seed, rank=rank, num_rows=num_rows)


def answer(upper: float, *, is_exhausted: bool) -> SphereBound:
    return SphereBound(upper=upper, lower=1.0, points=NO_POINTS, is_exhausted=is_exhausted)


def test_answers_that_time_limited_are_not_kept() -> None:
    spent, problem = SpentOracles(), problem_of(0)
    spent.note(problem, "A", answer(2.0, is_exhausted=False))
    assert spent.answer(problem, "A") is None
    kept = answer(2.0, is_exhausted=True)
    spent.note(problem, "A", kept)
    assert spent.answer(problem, "A") is kept
    assert spent.answer(problem, "B") is None
    assert spent.answer(problem_of(1), "A") is None
    assert copy.deepcopy(spent).answer(problem, "A") is None


def test_the_oldest_answers_leave() -> None:
    spent, problems = SpentOracles(capacity=2), [problem_of(seed) for seed in range(3)]
    for problem in problems:
        spent.note(problem, "A", answer(2.0, is_exhausted=True))
    assert [spent.answer(problem, "A") is None for problem in problems] == [True, False, False]


def test_a_relaxation_that_ended_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    original = PolynomialSandwich.maximise

    def counted(self: PolynomialSandwich, *arguments: object) -> SphereBound:
        runs.append(1)
        return original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(PolynomialSandwich, "maximise", counted)
    problem, oracle = problem_of(2, rank=10, num_rows=1100), AutoTwoLayerOracle(boxes=BoxBranchAndBound(max_rank=3))
    starts = local_maxima(problem)
    uppers = []
    for known in (math.inf, 1e9):
        request = BoundRequest(rtol=1e-3, known_upper=known, deadline=Deadline(60.0))
        uppers.append(oracle.maximise(problem, request, starts).upper)
    assert runs == [1]
    assert uppers[1] == uppers[0] < math.inf


def test_boxes_that_promise_to_end_in_time_are_asked_alone() -> None:
    problem, oracle = problem_of(3, num_rows=1500, rank=8), AutoTwoLayerOracle()
    starts = local_maxima(problem)
    floor = 1.6 * float(problem.values(starts)[0])  # soon proven by boxes, far below what measured sizes promise
    found = oracle.maximise(problem, BoundRequest(floor=floor, deadline=Deadline(120.0)), starts)
    assert found.upper <= floor
    assert "seconds in PolynomialSandwich" not in found.stats


def test_the_search_for_an_estimate_is_not_lost() -> None:
    problem, oracle = problem_of(4), BoxBranchAndBound(num_threads=1)
    starts = local_maxima(problem)
    request = BoundRequest(rtol=1e-2, deadline=Deadline(300.0))
    expected = oracle.expected_seconds(problem, request, starts)
    again = oracle.maximise(problem, request, starts)
    anew = BoxBranchAndBound(num_threads=1).maximise(problem, request, starts)
    assert again.upper == pytest.approx(anew.upper, rel=1e-6)
    assert expected == 0.0 or again.stats["cells"] < anew.stats["cells"]  # type: ignore[operator]
    assert oracle.expected_seconds(problem, request, starts) == 0.0  # it is known now


def test_no_estimate_without_time() -> None:
    problem = problem_of(5)
    request = BoundRequest(rtol=1e-2, deadline=Deadline(0.0))
    assert BoxBranchAndBound().expected_seconds(problem, request, local_maxima(problem)) == math.inf


def test_a_problem_harder_than_those_measured_is_so_for_all() -> None:
    for oracle in ("BoxBranchAndBound", "DoublyNonnegativeRelaxation", "PolynomialSandwich", "QuadraticRelaxation"):
        usual, hard = (
            expected_looseness(oracle, rank=10, num_rows=500, seconds=10.0, hardness=hardness) for hardness in (1.0, 3.0)
        )
        assert hard == pytest.approx(3.0 * usual)
    assert expected_looseness("BoxBranchAndBound", rank=6, num_rows=50, seconds=10.0, hardness=0.1) == 0.01


def test_the_source_of_a_bound_is_that_of_the_larger_side() -> None:
    class Named(AbstractTwoLayerOracle):
        """Says which side it was asked about."""

        def maximise(self, problem: SphereProblem, request: BoundRequest, starts: NDArray[np.float64]) -> SphereBound:
            upper = float(np.maximum(problem.duals, 0.0).sum())
            lower = float(problem.values(starts)[0])
            return SphereBound(upper=upper, lower=lower, points=starts[:1], stats={"oracle": f"upper {upper:g}"})

    problem = SphereProblem(rows=np.eye(2), duals=np.array([[3.0], [-2.0]]), linear=np.zeros((2, 1)))
    for sign in (1.0, -1.0):
        turned = SphereProblem(rows=problem.rows, duals=sign * problem.duals, linear=problem.linear)
        found = two_sided_bound(Named(), turned, BoundRequest(deadline=Deadline(5.0)), np.zeros((0, 2)))
        assert found.upper == 3.0
        assert found.stats["oracle"] == "upper 3"
