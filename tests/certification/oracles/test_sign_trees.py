"""Searches over signs that are gone on with when the same question is asked again."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest

from tests.certification.oracles._random_problems import random_problem
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.doubly_nonnegative_relaxation import DoublyNonnegativeRelaxation
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem


class CountedDeadline(Deadline):
    """Over after so many questions, whatever the clock says."""

    __slots__ = ("_left",)

    def __init__(self, questions: float) -> None:
        super().__init__()
        self._left = questions

    @property
    def remaining(self) -> float:
        self._left -= 1
        return math.inf if self._left > 0 else 0.0


def asked(
    oracle: DoublyNonnegativeRelaxation, problem: SphereProblem, *, rtol: float, questions: float = math.inf
) -> SphereBound:
    request = BoundRequest(rtol=rtol, deadline=CountedDeadline(questions))
    return oracle.maximise(problem, request, np.zeros((0, problem.rank)))


def nodes(found: SphereBound) -> float:
    return float(found.stats["nodes"])


@pytest.mark.parametrize("low_rank_rows", [80, 10])  # alternating projections, and a low-rank factor
def test_interrupted_again_and_again_it_comes_to_the_same_bound(low_rank_rows: int) -> None:
    problem = random_problem(1, 30, 4)
    whole = asked(DoublyNonnegativeRelaxation(low_rank_rows=low_rank_rows), problem, rtol=1e-3)
    oracle = DoublyNonnegativeRelaxation(low_rank_rows=low_rank_rows)
    uppers = []
    for _ in range(400):
        uppers.append(asked(oracle, problem, rtol=1e-3, questions=60))
        if "limited_by" not in uppers[-1].stats:
            break
    assert len(uppers) > 3
    assert uppers[-1].upper <= (1.0 + 1e-3) * uppers[-1].lower * (1.0 + 1e-12)
    assert all(later.upper <= earlier.upper for earlier, later in itertools.pairwise(uppers))
    assert min(found.upper for found in uppers) >= whole.lower * (1.0 - 1e-12)


def test_what_is_proven_is_not_proven_again() -> None:
    problem, oracle = random_problem(1, 30, 4), DoublyNonnegativeRelaxation()
    coarse = asked(oracle, problem, rtol=1e-1)
    again = asked(oracle, problem, rtol=1e-1)
    assert nodes(coarse) > nodes(again) == 0.0
    assert again.upper == coarse.upper
    fine = asked(oracle, problem, rtol=1e-3)
    assert fine.upper <= (1.0 + 1e-3) * fine.lower * (1.0 + 1e-12)
    assert nodes(asked(copy.deepcopy(oracle), problem, rtol=1e-1)) == nodes(coarse)


def test_another_problem_and_a_node_budget_start_anew() -> None:
    oracle = DoublyNonnegativeRelaxation()
    assert nodes(asked(oracle, random_problem(1, 30, 4), rtol=1e-1)) > 0.0
    assert nodes(asked(oracle, random_problem(4, 12, 3), rtol=1e-1)) > 0.0
    limited = DoublyNonnegativeRelaxation(max_nodes=2)
    assert [nodes(asked(limited, random_problem(1, 30, 4), rtol=1e-6)) for _ in range(2)] == [2.0, 2.0]
