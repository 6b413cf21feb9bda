from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from torch_strongdual.certification import Deadline
from torch_strongdual.certification.oracles import BoundRequest, BoxBranchAndBound, DepthRecursion
from torch_strongdual.certification.oracles._depth.dual_objectives import QuadraticObjective
from torch_strongdual.certification.oracles._depth.joint_slopes import DeepTraining, JointSlopes, JointTrial
from torch_strongdual.certification.oracles._depth.sample_groups import SampleGroups
from torch_strongdual.certification.oracles._depth.side_memory import SideBound
from torch_strongdual.certification.oracles._depth.side_proof import proven_cells
from torch_strongdual.certification.oracles._depth.sign_cells import covers_all_signs
from torch_strongdual.certification.oracles._depth.slope_search import SlopeSearch
from torch_strongdual.certification.oracles._depth.slope_tree import SlopeTree
from torch_strongdual.certification.oracles.row_space import RowSpace
from torch_strongdual.nn import ParallelNet

FloatArray = NDArray[np.float64]


def tree_with(signs: FloatArray) -> SlopeTree:
    tree = SlopeTree.of(np.ones(len(signs)), (0.0, 0.0))
    for sample in np.flatnonzero(signs):
        tree = tree.with_sign(int(sample), float(signs[sample]))
    return tree


@pytest.mark.parametrize("seed", range(40))
def test_a_cover_is_recognised_as_by_trying_all_signs(seed: int) -> None:
    generator = np.random.default_rng(seed)
    cases = [generator.choice([-1.0, 0.0, 1.0], size=3) for _ in range(generator.integers(1, 8))]
    expected = all(
        any(((case == 0) | (case == signs)).all() for case in cases) for signs in itertools.product((-1.0, 1.0), repeat=3)
    )
    assert covers_all_signs([tree_with(case) for case in cases]) == expected


def test_nothing_covers_nothing() -> None:
    assert not covers_all_signs([])


def begun(seed: int, num_samples: int, num_inputs: int) -> tuple[DeepTraining, JointSlopes]:
    """Iterations for a problem of noise."""
    generator = np.random.default_rng(seed)
    rows = RowSpace.of(generator.standard_normal((num_samples, num_inputs))).rows
    objective = QuadraticObjective(targets=generator.standard_normal(num_samples), curvature=1.0, slope_bound=math.inf)
    training = DeepTraining(rows=rows, objective=objective, path_decay=0.2, has_bias=False)
    duals = 0.1 * objective.targets
    known = []
    for sign in (1.0, -1.0):
        groups = SampleGroups.neighbours(rows, sign * duals, most_pairs=20, most_stars=20)
        tree = SlopeTree.of(sign * duals, (0.0, 0.0), groups)
        known.append(SlopeSearch(tree=tree, choices=tree.middle(), estimate=math.inf, points=[], mixture=[]))
    return training, JointSlopes(training, (known[0], known[1]), duals)


def split_trials(seed: int, num_splits: int) -> tuple[DeepTraining, list[JointTrial]]:
    """Points found with more and more cases."""
    training, iterations = begun(seed, 24, 3)
    starts, trials = np.zeros((0, 3)), []
    for _ in range(1 + num_splits):
        for _ in range(3):
            assert all(iterations.advance(starts, Deadline()) for _ in range(12))
            if iterations.complete(starts, Deadline()):
                break
        assert iterations.found is not None
        trials.append(iterations.found)
        if not iterations.split():
            break
    return training, trials


def largest_mixed_value(rows: FloatArray, duals: FloatArray, seed: int) -> float:
    """The best of many branches with two first units, one of them with a negative weight."""
    generator = np.random.default_rng(seed)
    units = generator.standard_normal((20_000, 2, rows.shape[1]))
    units /= np.linalg.norm(units, axis=2, keepdims=True)
    shares = generator.uniform(size=(20_000, 1))
    features = np.maximum(units @ rows.T, 0.0)
    mixed = np.maximum(shares * features[:, 0] - (1.0 - shares) * features[:, 1], 0.0)
    return float((mixed @ duals).max())


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 2))])
def test_points_of_split_cases_are_covered_and_bounded_above_branches(seed: int) -> None:
    training, trials = split_trials(seed, 2)
    inner, space = BoxBranchAndBound(), RowSpace.of(training.rows)
    for trial in trials:
        for sign, searches in zip((1.0, -1.0), trial.searches, strict=True):
            cells = tuple(SideBound(upper=math.inf, search=search) for search in (searches[1:] or searches))
            side = SideBound(upper=math.inf, search=searches[0], cells=cells)
            assert covers_all_signs([search.tree for search in searches[1:] or searches])
            proven = proven_cells(inner, space, side, BoundRequest(rtol=1e-3, deadline=Deadline()))
            attained = largest_mixed_value(training.rows, sign * trial.duals, seed)
            assert attained <= proven.upper < math.inf
    assert trials[-1].value > trials[0].value
    assert max(map(len, trials[-1].searches)) > 2


def test_the_search_for_all_signs_stays_that_when_all_cases_have_joined_the_programs() -> None:
    """After another split one of the cases had taken its place, and its bound could be taken for one on all."""
    _, iterations = begun(0, 14, 2)
    starts = np.zeros((0, 2))
    for _ in range(2):
        assert all(iterations.advance(starts, Deadline()) for _ in range(3))
        iterations.complete(starts, Deadline())
        iterations._sides, iterations._beside = [*iterations._sides, *iterations._beside], []
        assert iterations.split()
    assert [search.tree.signs for search in iterations._whole] == [None, None]


def test_a_sign_whose_cases_are_all_left_aside_begins_with_the_search_for_all_signs() -> None:
    _, iterations = begun(0, 14, 2)
    starts = np.zeros((0, 2))
    assert all(iterations.advance(starts, Deadline()) for _ in range(3))
    assert iterations.split()
    split = next(side.sign for side in iterations._sides if side.known.tree.signs is not None)
    iterations._beside += [side for side in iterations._sides if side.sign == split]
    iterations._sides = [side for side in iterations._sides if side.sign != split]
    assert iterations._sides
    assert iterations.advance(starts, Deadline())
    iterations.complete(starts, Deadline())
    assert iterations.found is not None
    for searches in iterations.found.searches:
        assert searches[0].tree.signs is None
        assert covers_all_signs([search.tree for search in searches[1:] or searches])


def test_a_search_for_one_case_is_not_suggested_for_all() -> None:
    training, trials = split_trials(0, 0)
    net = ParallelNet(
        *(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False), nn.ReLU()),
        nn.Linear(3, 1, bias=False),
        num_branches=1,
    )
    oracle = DepthRecursion(BoxBranchAndBound())
    state = oracle.init(net.branch_spec, torch.from_numpy(training.rows))
    whole = trials[0].searches[0][0]
    with pytest.raises(ValueError, match="without signs"):
        oracle.suggest(state, [dataclasses.replace(whole, tree=whole.tree.with_sign(0, 1.0))])


def test_cases_that_leave_signs_out_prove_nothing() -> None:
    training, trials = split_trials(0, 0)
    whole = trials[0].searches[0][0]
    request = BoundRequest(rtol=1e-3, deadline=Deadline())

    def proven(signs: tuple[float, ...]) -> float:
        halves = [dataclasses.replace(whole, tree=whole.tree.with_sign(0, sign)) for sign in signs]
        cells = tuple(SideBound(upper=math.inf, search=half) for half in halves)
        side = SideBound(upper=math.inf, search=whole, cells=cells)
        return proven_cells(BoxBranchAndBound(), RowSpace.of(training.rows), side, request).upper

    assert proven((1.0,)) == math.inf
    assert proven((1.0, -1.0)) < math.inf
