from __future__ import annotations

import copy
import math
import time

import numpy as np
import pytest
import torch

from tests.certification.oracles._random_problems import random_problem
from tests.contracts.oracle_cases import (
    OracleCase,
    bent_spec,
    orthonormal_cases,
    planar_cases,
    rank_one_cases,
    rank_three_cases,
)
from tests.contracts.oracle_contract import OracleContract
from tests.references.enumeration import exact_dual_norm
from tests.references.planar import exact_planar_dual_norm
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles._boxes.compilation import compile_kernels
from torch_strongdual.certification.oracles._boxes.forest import BoxForest
from torch_strongdual.certification.oracles._boxes.search import _Attempt, _missing_cells
from torch_strongdual.certification.oracles._boxes.tree import BoxTree, SearchStatus
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.box_branch_and_bound import BoxBranchAndBound
from torch_strongdual.certification.oracles.local_ascent import local_maxima
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem


def one_sided(rows: np.ndarray, duals: np.ndarray, linear: np.ndarray | None = None) -> SphereProblem:
    linear = np.zeros(rows.shape[1]) if linear is None else linear
    return SphereProblem(rows=rows, duals=duals[:, None], linear=linear[:, None], one_sided=True)


def search(problem: SphereProblem, *, rtol: float = 1e-3, seconds: float = 30.0, **options: object) -> SphereBound:
    request = BoundRequest(rtol=rtol, deadline=Deadline(seconds))
    return BoxBranchAndBound(**options).maximise(problem, request, local_maxima(problem))  # type: ignore[arg-type]


class TestBoxBranchAndBound(OracleContract):
    rtol = 1e-3
    looseness = 1.001 + 1e-9

    def make_oracle(self) -> BoxBranchAndBound:
        return BoxBranchAndBound()

    def make_cases(self) -> list[OracleCase]:
        return [*planar_cases(), *rank_one_cases(), *rank_three_cases(), *orthonormal_cases()]

    def test_rank_above_the_limit_proves_nothing_and_says_so(self) -> None:
        case = rank_three_cases()[0]
        oracle = BoxBranchAndBound(max_rank=2)
        found = oracle.bound(oracle.init(case.spec, case.inputs), case.dual_point, self.request())
        assert found.upper == math.inf
        assert "max_rank=2" in str(found.stats["limited_by"])


@pytest.mark.parametrize("rank", [2, 3])
def test_a_bound_below_the_maximum_is_never_proven(rank: int) -> None:
    """The kernel itself, without local ascent: targets 1e-4, 1e-8 and 1e-12 below the exact maximum."""
    generator = np.random.default_rng(rank)
    for _ in range(15):
        rows, duals = generator.standard_normal((8, rank)), generator.standard_normal(8)
        truth = exact_dual_norm(rows, duals, one_sided=True)
        if truth < 0.1:
            continue
        for distance in (1e-4, 1e-8, 1e-12):
            tree = BoxTree(one_sided(rows, duals))
            assert tree.advance(truth * (1 - distance), 200_000) != SearchStatus.ALL_PROVEN
        tree = BoxTree(one_sided(rows, duals))
        assert tree.advance(truth * (1 + 1e-6), 200_000) == SearchStatus.ALL_PROVEN
        assert tree.proven_fraction == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("num_outputs", [2, 3, 5])
def test_a_vector_bound_below_the_maximum_is_never_proven(num_outputs: int) -> None:
    generator = np.random.default_rng(num_outputs)
    for _ in range(10):
        rows, duals = generator.standard_normal((9, 2)), generator.standard_normal((9, num_outputs))
        truth = exact_planar_dual_norm(rows, duals)
        problem = SphereProblem(rows=rows, duals=duals, linear=np.zeros((2, num_outputs)))
        for distance in (1e-4, 1e-8, 1e-12):
            assert BoxTree(problem).advance(truth * (1 - distance), 100_000) != SearchStatus.ALL_PROVEN
        assert BoxTree(problem).advance(truth * (1 + 1e-6), 100_000) == SearchStatus.ALL_PROVEN


def test_known_maximum_on_the_grid_of_the_search() -> None:
    """Orthonormal rows with equal duals: the maximiser (1, ..., 1) is a corner of cells at every depth."""
    for rank in (2, 3, 4):
        problem = one_sided(np.eye(rank), np.ones(rank))
        for excess in (1e-13, 1e-15):
            assert BoxTree(problem).advance(math.sqrt(rank) * (1 - excess), 20_000) != SearchStatus.ALL_PROVEN
        found = search(problem, rtol=1e-6)
        assert math.sqrt(rank) <= found.upper <= math.sqrt(rank) * (1 + 2e-6)


def test_linear_part_and_one_side() -> None:
    generator = np.random.default_rng(5)
    for _ in range(30):
        rows, duals, linear = generator.standard_normal((7, 3)), generator.standard_normal(7), generator.standard_normal(3)
        truth = exact_dual_norm(rows, duals, linear, one_sided=True)
        found = search(one_sided(rows, duals, linear))
        assert truth * (1 - 1e-12) <= found.upper <= 1.0011 * truth + 1e-6 * np.abs(duals).sum()
        assert found.lower <= truth * (1 + 1e-12)


def test_nothing_positive_is_zero_at_once() -> None:
    found = search(one_sided(np.random.default_rng(0).standard_normal((50, 6)), -np.ones(50)))
    assert found.upper == 0.0
    assert found.stats["cells"] == 0.0


def test_many_rows_outgrow_the_first_arena() -> None:
    generator = np.random.default_rng(6)
    rows, duals = generator.standard_normal((4000, 3)), generator.standard_normal(4000)
    found = search(one_sided(rows, duals))
    points = generator.standard_normal((3000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    assert float(one_sided(rows, duals).values(points).max()) <= found.upper <= 1.0011 * found.lower


def test_cell_budget_is_deterministic() -> None:
    generator = np.random.default_rng(7)
    problem = one_sided(generator.standard_normal((200, 8)), generator.standard_normal(200))
    first, second = (search(problem, max_cells=3000, rtol=1e-6) for _ in range(2))
    assert first.stats["limited_by"] == "max_cells"
    assert float(first.stats["cells"]) <= 3000
    assert (first.upper, first.lower) == (second.upper, second.lower)
    assert math.isfinite(first.upper)


def test_more_cells_never_give_a_worse_bound() -> None:
    generator = np.random.default_rng(8)
    problem = one_sided(generator.standard_normal((60, 6)), generator.standard_normal(60))
    uppers = [search(problem, max_cells=budget, rtol=1e-5).upper for budget in (100, 3_000, 60_000)]
    assert uppers[0] >= uppers[1] >= uppers[2]
    assert uppers[2] < uppers[0]


def test_progress_is_reported_up_to_the_whole_sphere() -> None:
    seen: list[tuple[float, float]] = []
    generator = np.random.default_rng(9)
    found = search(
        one_sided(generator.standard_normal((40, 4)), generator.standard_normal(40)),
        progress=lambda fraction, bound: seen.append((fraction, bound)),
    )
    assert seen[-1][0] == pytest.approx(1.0)
    assert seen[-1][1] == found.upper
    assert all(0.0 <= fraction <= 1.0 + 1e-12 for fraction, _ in seen)


def test_deadline_is_kept_and_leaves_a_bound() -> None:
    generator = np.random.default_rng(10)
    problem = one_sided(generator.standard_normal((300, 12)), generator.standard_normal(300))
    compile_kernels(1)
    begin = time.process_time()
    found = search(problem, rtol=1e-6, seconds=0.5)
    assert time.process_time() - begin < 5.0
    assert math.isfinite(found.upper)
    assert found.stats["limited_by"] == "time"


def test_a_search_cut_short_goes_on_where_it_stopped() -> None:
    generator = np.random.default_rng(15)
    problem = one_sided(generator.standard_normal((200, 8)), generator.standard_normal(200))
    starts = local_maxima(problem)
    compile_kernels(1)
    fresh = BoxBranchAndBound(num_threads=1).maximise(problem, BoundRequest(rtol=1e-2, deadline=Deadline(60.0)), starts)
    oracle = BoxBranchAndBound(num_threads=1)
    rounds = 0
    while True:
        found = oracle.maximise(problem, BoundRequest(rtol=1e-2, deadline=Deadline(0.1)), starts)
        rounds += 1
        if "limited_by" not in found.stats:
            break
        assert found.upper >= fresh.lower
        assert rounds < 300
    assert rounds > 1
    assert found.upper == pytest.approx(fresh.upper, rel=1e-9)
    forgetful = copy.deepcopy(oracle)
    assert forgetful.maximise(problem, BoundRequest(rtol=1e-2, deadline=Deadline(0.0)), starts).upper >= found.upper


def test_a_goal_tried_at_once_takes_the_cells_of_one_search_and_is_raised_when_they_are_too_few() -> None:
    generator = np.random.default_rng(15)
    problem = one_sided(generator.standard_normal((200, 8)), generator.standard_normal(200))
    starts = local_maxima(problem)
    request = BoundRequest(rtol=0.05, deadline=Deadline(600.0))
    whole = BoxBranchAndBound(max_cells=1_000_000, comes_down=False).maximise(problem, request, starts)
    assert whole.upper == pytest.approx(1.05 * whole.lower, rel=1e-9)
    cells = float(whole.stats["cells"])
    bounds = []
    for share in (1.2, 0.7):
        oracle = BoxBranchAndBound(max_cells=int(share * cells), comes_down=False)
        bounds.append(oracle.maximise(problem, request, starts).upper)
    assert bounds[0] == pytest.approx(whole.upper, rel=1e-9)
    assert whole.upper < bounds[1] < 2.0 * whole.lower


def test_target_ends_the_search_early() -> None:
    generator = np.random.default_rng(11)
    problem = one_sided(generator.standard_normal((60, 5)), generator.standard_normal(60))
    tight = search(problem)
    starts = local_maxima(problem)
    for target in (2.0 * tight.upper, 0.5 * tight.lower):
        request = BoundRequest(rtol=1e-3, target=target, deadline=Deadline(30.0))
        found = BoxBranchAndBound().maximise(problem, request, starts)
        assert found.stats["cells"] < tight.stats["cells"]  # type: ignore[operator]
        assert found.upper >= tight.lower


def test_local_ascent_that_is_low_does_not_fool_the_bound() -> None:
    """Without any start the search has to find its own counterexamples."""
    generator = np.random.default_rng(12)
    for _ in range(10):
        rows, duals = generator.standard_normal((30, 3)), generator.standard_normal(30)
        problem = one_sided(rows, duals)
        good = search(problem)
        request = BoundRequest(rtol=1e-3, deadline=Deadline(30.0))
        blind = BoxBranchAndBound().maximise(problem, request, np.zeros((0, 3)))
        assert blind.upper >= good.lower
        assert blind.upper <= good.upper * 1.0011
        assert good.upper >= blind.lower


def test_bias_column_raises_the_rank_and_nothing_else() -> None:
    generator = np.random.default_rng(13)
    rows, duals = generator.standard_normal((8, 2)), generator.standard_normal(8)
    truth = exact_dual_norm(np.hstack([rows, np.ones((8, 1))]), duals)
    oracle = BoxBranchAndBound()
    state = oracle.init(bent_spec(2, 3, 1, input_bias=True), torch.from_numpy(rows))
    found = oracle.bound(state, torch.from_numpy(duals[:, None]), BoundRequest(rtol=1e-4, deadline=Deadline(20.0)))
    assert truth * (1 - 1e-12) <= found.upper <= truth * (1 + 1.1e-4)


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_threads_prove_what_one_thread_proves(num_outputs: int) -> None:
    generator = np.random.default_rng(14)
    rows, duals = generator.standard_normal((60, 5)), generator.standard_normal((60, num_outputs))
    problem = SphereProblem(rows=rows, duals=duals, linear=np.zeros((5, num_outputs)), one_sided=num_outputs == 1)
    truth = search(problem, rtol=1e-4)
    runs = [BoxForest(problem, num_threads=threads) for threads in (1, 2, 3)]
    for forest in runs:
        while not (progress := forest.advance(truth.upper, 500)).is_proven:
            assert not progress.witnesses
        assert forest.proven_fraction == pytest.approx(1.0)
    below = BoxForest(problem, num_threads=2)
    found: list[np.ndarray] = []
    while not found:
        progress = below.advance(truth.lower * 0.99, 500)
        assert not progress.is_proven
        found = progress.witnesses
    assert float(problem.values(found[0][None])[0]) > truth.lower * 0.99


def test_threads_with_a_cell_budget_are_deterministic() -> None:
    generator = np.random.default_rng(15)
    problem = one_sided(generator.standard_normal((200, 8)), generator.standard_normal(200))
    first, second = (search(problem, max_cells=40_000, rtol=1e-6, num_threads=2) for _ in range(2))
    assert (first.upper, first.lower, first.stats["cells"]) == (second.upper, second.lower, second.stats["cells"])


class TestAttempt:
    """How a search that is too slow is hurried."""

    def test_a_search_in_time_is_left_alone(self) -> None:
        attempt = _Attempt(start=0, fraction=0.0)
        assert all(attempt.excess_factor(cells, cells / 1000, 1000 - cells) == 1.0 for cells in range(10, 1000, 10))

    def test_a_search_is_not_hurried_because_its_pace_is_not_known_at_first(self) -> None:
        """One that goes on where another stopped begins with a guess, which is too slow by a factor of three or so."""
        attempt = _Attempt(start=0, fraction=0.5)
        first = [attempt.excess_factor(cells, 0.5 + cells / 2000, (1000 - cells) / 3) for cells in range(10, 100, 10)]
        later = [attempt.excess_factor(cells, 0.5 + cells / 2000, 1000 - cells) for cells in range(100, 1000, 10)]
        assert {*first, *later} == {1.0}

    def test_a_slow_search_is_hurried_ever_more_once_patience_ends(self) -> None:
        attempt = _Attempt(start=0, fraction=0.0)
        factors = [attempt.excess_factor(cells, cells / 10_000, 1000 - cells) for cells in range(10, 1000, 10)]
        raised = [factor for factor in factors if factor > 1.0]
        assert all(factor == 1.0 for factor in factors[:59])
        assert len(raised) >= 4
        assert raised == sorted(raised)


def test_a_small_share_of_the_surface_promises_less_than_a_large_one() -> None:
    assert _missing_cells(100, 0.0) == math.inf
    assert _missing_cells(100, 0.5) == 100.0
    assert _missing_cells(100, 0.8) == pytest.approx(25.0)
    assert _missing_cells(100, 0.1) > 900.0


def test_a_copy_of_a_forest_goes_on_by_itself() -> None:
    problem = random_problem(3, 30, 4)
    bound = 1.2 * float(problem.values(local_maxima(problem))[0])
    forest = BoxForest(problem, num_threads=1)
    forest.advance(bound, 5)
    other = forest.copy()
    cells, fraction = other.cells, other.proven_fraction
    while not forest.advance(bound, 1000).is_proven:
        pass
    assert (other.cells, other.proven_fraction) == (cells, fraction)
    while not other.advance(bound, 1000).is_proven:
        pass
    assert other.cells == forest.cells > cells
    assert other.proven_fraction == forest.proven_fraction == 1.0
