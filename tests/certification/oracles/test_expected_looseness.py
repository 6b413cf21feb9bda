"""The estimates that AutoTwoLayerOracle chooses by: those measured, and sensible between."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.certification.oracles._random_problems import random_problem
from torch_strongdual.certification.oracles._choice.expected_looseness import expected_looseness, measured_seconds
from torch_strongdual.certification.oracles._choice.measured_looseness import MEASURED
from torch_strongdual.certification.oracles._choice.oracle_choice import OracleChoice
from torch_strongdual.certification.oracles._choice.spent_oracles import SpentOracles
from torch_strongdual.certification.oracles.box_branch_and_bound import BoxBranchAndBound
from torch_strongdual.certification.oracles.doubly_nonnegative_relaxation import DoublyNonnegativeRelaxation
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results" / "oracle_costs.json"
BOXES, RELAXATION, SANDWICH = "BoxBranchAndBound", "DoublyNonnegativeRelaxation", "PolynomialSandwich"


def make_choice() -> OracleChoice:
    return OracleChoice(BoxBranchAndBound(), DoublyNonnegativeRelaxation(), SpentOracles())


def test_the_table_is_what_the_benchmark_measured() -> None:
    rows = json.loads(RESULTS.read_text())["rows"]
    measured = [
        (row["oracle"], row["rank"], row["num_samples"], row["seconds"], row["upper"] / row["lower"] - 1.0) for row in rows
    ]
    assert len(measured) == len(MEASURED) > 0
    for seen, kept in zip(measured, MEASURED, strict=True):
        assert seen[:3] == kept[:3]
        assert seen[3:] == pytest.approx(kept[3:], abs=0.006)


@pytest.mark.parametrize("row", MEASURED[::7], ids=lambda row: f"{row[0]}-{row[1]}-{row[2]}-{row[3]}")
def test_what_was_measured_comes_back(row: tuple[str, int, int, float, float]) -> None:
    oracle, rank, num_rows, seconds, looseness = row
    longest = max(other[3] for other in MEASURED if other[:3] == row[:3])
    if seconds == longest:
        assert expected_looseness(oracle, rank=rank, num_rows=num_rows, seconds=seconds) == pytest.approx(looseness, abs=0.01)


@pytest.mark.parametrize("oracle", [BOXES, RELAXATION, SANDWICH])
@pytest.mark.parametrize("rank", [7, 8, 11, 14])
@pytest.mark.parametrize("num_rows", [30, 70, 300])
def test_more_time_never_hurts(oracle: str, rank: int, num_rows: int) -> None:
    values = [expected_looseness(oracle, rank=rank, num_rows=num_rows, seconds=seconds) for seconds in (0.1, 1.0, 10.0, 600.0)]
    assert values == sorted(values, reverse=True)
    assert all(0.0 < value < math.inf for value in values)


def test_no_estimate_where_nothing_is_measured() -> None:
    assert expected_looseness("LinearOracle", rank=8, num_rows=50, seconds=1.0) == math.inf


def test_boxes_at_small_rank_relaxations_at_large_rank() -> None:
    def best(rank: int, num_rows: int) -> str:
        return min(
            (BOXES, RELAXATION, SANDWICH),
            key=lambda oracle: expected_looseness(oracle, rank=rank, num_rows=num_rows, seconds=16.0),
        )

    assert best(8, 200) == BOXES
    assert best(12, 100) == RELAXATION
    assert best(12, 1000) == RELAXATION


def test_the_quickest_goes_first_where_several_are_expected_to_leave_nothing_to_ask_for() -> None:
    problem = random_problem(0, 200, 8)
    assert measured_seconds(BOXES, rank=8, num_rows=200) < measured_seconds(RELAXATION, rank=8, num_rows=200) < math.inf
    assert measured_seconds(SANDWICH, rank=8, num_rows=200) == math.inf
    first = make_choice().by_measurements(problem, 16.0, math.inf)[0]
    assert type(first).__name__ == BOXES


@pytest.mark.parametrize(("smallest", "seconds", "expected"), [(0.03, 16.0, BOXES), (1.0, 4.0, RELAXATION)])
def test_short_principal_axes_cost_boxes_little(smallest: float, seconds: float, expected: str) -> None:
    """Ten axes of which half are short are like few for boxes; ten of equal length are out of their reach."""
    generator = np.random.default_rng(0)
    lengths = np.where(np.arange(10) < 6, 1.0, smallest)
    problem = SphereProblem(
        rows=generator.standard_normal((500, 10)) * lengths,
        duals=generator.standard_normal((500, 1)),
        linear=np.zeros((10, 1)),
        one_sided=True,
    )
    assert type(make_choice().by_measurements(problem, seconds, math.inf)[-1]).__name__ == expected


def test_oracles_that_can_hardly_beat_what_is_known_are_left_out() -> None:
    generator = np.random.default_rng(1)
    fewer = 0
    for rank, num_rows in itertools.product((8, 9, 10, 12), (50, 100, 200, 500, 1000)):
        problem = SphereProblem(
            rows=generator.standard_normal((num_rows, rank)),
            duals=generator.standard_normal((num_rows, 1)),
            linear=np.zeros((rank, 1)),
            one_sided=True,
        )
        unknown, known = (
            [type(oracle).__name__ for oracle in make_choice().by_measurements(problem, 16.0, looseness)]
            for looseness in (math.inf, 0.0)
        )
        assert known == unknown[-len(known) :]  # the most promising ones stay, several of them if they promise the same
        fewer += len(known) < len(unknown)
    assert fewer
