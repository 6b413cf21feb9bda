"""What box searches leave behind for the same question asked again."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import pytest

from tests.certification.oracles._random_problems import one_sided_problem
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles._boxes.compilation import compile_kernels
from torch_strongdual.certification.oracles._boxes.forest import Forest, Progress
from torch_strongdual.certification.oracles._boxes.unfinished import UnfinishedSearches
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.box_branch_and_bound import BoxBranchAndBound
from torch_strongdual.certification.oracles.local_ascent import local_maxima
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem


@dataclass
class StillForest:
    """A forest that does nothing."""

    proven_fraction: float
    cells: int = 1

    def advance(self, bound: float, max_cells: int) -> Progress:
        return Progress(is_proven=False, witnesses=[], is_stalled=False)

    def copy(self) -> Forest:
        return copy.copy(self)


def problem_of(seed: int, rank: int = 3, num_rows: int = 8) -> SphereProblem:
    return one_sided_problem(seed, rank=rank, num_rows=num_rows)


def test_a_forest_leaves_for_its_own_bound_and_is_copied_for_a_larger_one() -> None:
    kept, forest, problem = UnfinishedSearches(), StillForest(0.5), problem_of(0)
    kept.keep(problem, 2.0, forest)
    larger = kept.take(problem, 3.0)
    assert larger == forest
    assert larger is not forest
    assert kept.take(problem, 1.9) is None  # what is proven for two is not proven for less
    assert kept.take(problem_of(1), 2.0) is None
    assert kept.peek(problem, 2.0) is forest
    assert kept.take(problem, 2.0) is forest
    assert kept.take(problem, 2.0) is None


def test_the_forest_with_most_proven_goes_on() -> None:
    kept, problem = UnfinishedSearches(), problem_of(0)
    for bound, fraction in ((1.0, 0.2), (2.0, 0.9), (3.0, 0.4), (5.0, 1.0)):
        kept.keep(problem, bound, StillForest(fraction))
    found = kept.take(problem, 4.0)
    assert found is not None
    assert found.proven_fraction == 0.9


def test_the_smallest_bound_proven_is_remembered_of_few_problems() -> None:
    kept = UnfinishedSearches(capacity=2)
    assert kept.proven(problem_of(0)) == math.inf
    for bound in (3.0, 2.0, 4.0):
        kept.remember(problem_of(0), bound)
    assert kept.proven(problem_of(0)) == 2.0
    kept.remember(problem_of(1), 1.0)
    kept.remember(problem_of(2), 1.0)
    assert kept.proven(problem_of(0)) == math.inf
    assert copy.deepcopy(kept).proven(problem_of(2)) == math.inf


def test_a_bound_proven_once_needs_no_second_search() -> None:
    compile_kernels(1)
    problem, oracle = problem_of(3, rank=6, num_rows=80), BoxBranchAndBound(num_threads=1)
    starts = local_maxima(problem)
    request = BoundRequest(rtol=1e-2, deadline=Deadline(60.0))
    first, again = (oracle.maximise(problem, request, starts) for _ in range(2))
    assert first.stats["cells"] > 0  # type: ignore[operator]
    assert again.stats["cells"] == 0
    assert again.upper == first.upper
    finer = oracle.maximise(problem, BoundRequest(rtol=1e-3, deadline=Deadline(60.0)), starts)
    fresh = BoxBranchAndBound(num_threads=1).maximise(problem, BoundRequest(rtol=1e-3, deadline=Deadline(60.0)), starts)
    assert finer.upper == pytest.approx(fresh.upper, rel=1e-9)


@pytest.mark.parametrize("rank", [3, 5])
def test_resuming_for_a_larger_bound_proves_nothing_false(rank: int) -> None:
    """Searches cut short for ever changing bounds never get below what is attained."""
    compile_kernels(1)
    generator = np.random.default_rng(rank)
    for seed in range(20):
        problem, oracle = problem_of(seed, rank, 40), BoxBranchAndBound(num_threads=1)
        starts = local_maxima(problem)
        best = float(problem.values(starts).max(initial=0.0))
        for _ in range(6):
            request = BoundRequest(
                rtol=float(generator.choice([1e-6, 1e-3, 0.1])),
                known_upper=float(generator.choice([math.inf, 1.5 * best + 1e-3])),
                deadline=Deadline(float(generator.choice([0.0, 0.003, 0.02]))),
            )
            found = oracle.maximise(problem, request, starts)
            assert found.upper >= found.lower >= best * (1.0 - 1e-12)


def test_the_pace_of_a_search_is_that_of_the_next_one_of_its_size() -> None:
    kept = UnfinishedSearches(capacity=2)
    assert kept.pace(problem_of(0), 7.0) == 7.0
    kept.note_pace(problem_of(0), 2.0)
    assert kept.pace(problem_of(1), 7.0) == 2.0  # other numbers, the same size
    assert kept.pace(problem_of(1, rank=4), 7.0) == 7.0
    for rank in (4, 5):
        kept.note_pace(problem_of(0, rank=rank), 3.0)
    assert kept.pace(problem_of(0), 7.0) == 7.0  # the oldest leave
    assert copy.deepcopy(kept).pace(problem_of(0, rank=5), 7.0) == 7.0
