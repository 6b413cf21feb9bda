from __future__ import annotations

import math
import time
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests._compiled_entry import callable_part
from tests.certification.oracles._random_problems import random_problem
from tests.contracts.oracle_cases import (
    OracleCase,
    orthonormal_cases,
    planar_cases,
    rank_one_cases,
    rank_three_cases,
)
from tests.contracts.oracle_contract import OracleContract
from tests.references.box_bounds import concave_maximum, scalar_box_excess, vector_box_excess
from tests.references.enumeration import exact_dual_norm
from tests.references.planar import exact_planar_dual_norm
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.oracles._boxes._cells_kernel import largest_over_box
from torch_strongdual.certification.oracles._boxes.batched_cells import BatchedCells, largest_over_boxes
from torch_strongdual.certification.oracles._boxes.batched_forest import BatchBudget, BatchedForest
from torch_strongdual.certification.oracles._boxes.compilation import compile_kernels
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.auto_two_layer_oracle import AutoTwoLayerOracle
from torch_strongdual.certification.oracles.batched_box_branch_and_bound import BatchedBoxBranchAndBound
from torch_strongdual.certification.oracles.box_branch_and_bound import BoxBranchAndBound
from torch_strongdual.certification.oracles.local_ascent import local_maxima
from torch_strongdual.certification.oracles.sphere_problem import SphereBound, SphereProblem
from torch_strongdual.errors import InvalidInputError

CPU = torch.device("cpu")
FloatArray = np.ndarray


def forest(problem: SphereProblem, *, batch: int = 64, waiting: int = 100_000) -> BatchedForest:
    return BatchedForest(problem, device=CPU, budget=BatchBudget(batch=batch, waiting=waiting))


def search(problem: SphereProblem, *, rtol: float = 1e-3, seconds: float = 30.0, **options: Any) -> SphereBound:
    request = BoundRequest(rtol=rtol, deadline=Deadline(seconds))
    return BatchedBoxBranchAndBound(**{"device": "cpu", **options}).maximise(problem, request, local_maxima(problem))


def random_cells(seed: int, rank: int, number: int) -> tuple[FloatArray, FloatArray]:
    """Boxes of all sizes on the faces of the cube, with dyadic centres and widths as bisection makes them."""
    generator = np.random.default_rng(seed)
    depth = generator.integers(0, 7, size=(number, rank))
    width = 0.5**depth
    place = generator.integers(0, 2**depth)
    centre = -1.0 + width * (2 * place + 1)
    face = generator.integers(rank, size=number)
    centre[np.arange(number), face] = generator.choice([-1.0, 1.0], size=number)
    width[np.arange(number), face] = 0.0
    return centre, width


class TestBatchedBoxBranchAndBound(OracleContract):
    rtol = 1e-3
    looseness = 1.001 + 1e-9

    def make_oracle(self) -> BatchedBoxBranchAndBound:
        return BatchedBoxBranchAndBound(device="cpu")

    def make_cases(self) -> list[OracleCase]:
        return [*planar_cases()[1:], *rank_one_cases()[1:], *rank_three_cases()[1:], *orthonormal_cases()]

    @pytest.mark.parametrize(("option", "size"), [("max_rank", 2), ("memory_bytes", 4000)])
    def test_what_is_too_large_proves_nothing_and_says_so(self, option: str, size: int) -> None:
        case = rank_three_cases()[0]
        oracle = BatchedBoxBranchAndBound(device="cpu", **{option: size})  # type: ignore[arg-type]
        found = oracle.bound(oracle.init(case.spec, case.inputs), case.dual_point, self.request())
        assert found.upper == math.inf
        assert f"{option}={size}" in str(found.stats["limited_by"])


@pytest.mark.parametrize(("n", "rank"), [(1, 2), (30, 3), (40, 6)])
@pytest.mark.parametrize("linear", [0.0, 1.0])
def test_scalar_bounds_are_those_of_the_definition_cell_by_cell(n: int, rank: int, linear: float) -> None:
    problem = random_problem(n, n, rank, linear=linear)
    centre, width = random_cells(rank, rank, 120)
    for bound in (0.1 * problem.magnitude(), 0.5 * problem.magnitude()):
        found = BatchedCells(problem, CPU).evaluate(torch.from_numpy(centre), torch.from_numpy(width), bound)
        for cell in range(len(centre)):
            args = problem.rows, problem.duals[:, 0], problem.linear[:, 0], centre[cell], width[cell], bound
            assert abs(float(found.excess[cell]) - scalar_box_excess(*args)) <= 1e-12 * problem.magnitude()
        assert found.ratio.numpy() == pytest.approx(problem.images(centre)[:, 0] / np.linalg.norm(centre, axis=1), rel=1e-12)


@pytest.mark.parametrize(("n", "rank", "num_outputs"), [(2, 2, 2), (25, 3, 3), (20, 4, 5), (15, 2, 1)])
@pytest.mark.parametrize("linear", [0.0, 1.0])
def test_vector_bounds_are_those_of_the_definition_cell_by_cell(n: int, rank: int, num_outputs: int, linear: float) -> None:
    drawn = random_problem(n, n, rank, num_outputs=num_outputs, linear=linear)
    problem = SphereProblem(rows=drawn.rows, duals=drawn.duals, linear=drawn.linear)
    centre, width = random_cells(rank, rank, 120)
    finite = 0
    for bound in (0.2 * problem.magnitude(), problem.magnitude()):
        found = BatchedCells(problem, CPU).evaluate(torch.from_numpy(centre), torch.from_numpy(width), bound)
        for cell in range(len(centre)):
            expected = vector_box_excess(problem.rows, problem.duals, problem.linear, centre[cell], width[cell], bound)
            excess = float(found.excess[cell])
            assert math.isfinite(excess) == math.isfinite(expected)
            if math.isfinite(excess):
                finite += 1
                # q^2 / M with M as small as a fiftieth of the bound: errors are enlarged by up to (|q| / M)^2 < 2500.
                assert abs(excess - expected) <= 1e-12 * max(problem.magnitude(), abs(expected))
    assert finite > 100


def test_the_maximum_over_a_box_is_that_of_the_compiled_kernel() -> None:
    compiled = callable_part(largest_over_box)
    generator = np.random.default_rng(3)
    for rank in (1, 2, 5):
        centre, width = random_cells(rank, rank, 50)
        const, slope = generator.standard_normal(50), 3.0 * generator.standard_normal((50, rank))
        found, aim = largest_over_boxes(
            torch.from_numpy(const), torch.from_numpy(slope), torch.from_numpy(centre), torch.from_numpy(width), 1.5
        )
        for cell in range(50):
            work = np.zeros(rank)
            args = const[cell], slope[cell], centre[cell], width[cell], 1.5
            assert float(found[cell]) == pytest.approx(compiled(*args, -math.inf, work), rel=1e-12, abs=1e-12)
            assert aim[cell].numpy() == pytest.approx(work, abs=1e-9)
            assert float(found[cell]) == pytest.approx(concave_maximum(*args), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("num_outputs", [1, 3, 5])
def test_no_point_of_a_box_exceeds_its_bound(num_outputs: int) -> None:
    problem = random_problem(num_outputs, 20, 3, num_outputs=num_outputs)
    evaluator, bound = BatchedCells(problem, CPU), 1.05 * float(problem.values(local_maxima(problem))[0])
    centre, width = random_cells(7, 3, 400)
    found = evaluator.evaluate(torch.from_numpy(centre), torch.from_numpy(width), bound)
    is_proven = (found.excess <= -evaluator.slack(bound)).numpy()
    assert 20 < is_proven.sum() < 400
    generator = np.random.default_rng(8)
    for c, w in zip(centre[is_proven], width[is_proven], strict=True):
        points = c + w * generator.choice([generator.uniform(-1, 1), -1.0, 1.0], size=(50, 3))
        assert (problem.values(points) <= bound * np.linalg.norm(points, axis=1)).all()


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_batches_prove_what_the_compiled_search_proves(num_outputs: int) -> None:
    problem = random_problem(14, 60, 5, num_outputs=num_outputs)
    compile_kernels(num_outputs)  # not at the expense of the deadline
    request = BoundRequest(rtol=1e-3, deadline=Deadline(30.0))
    compiled = BoxBranchAndBound(num_threads=1).maximise(problem, request, local_maxima(problem))
    batched = search(problem)
    assert batched.upper <= 1.0011 * compiled.lower
    assert compiled.upper <= 1.0011 * batched.lower


@pytest.mark.parametrize("rank", [2, 3])
def test_a_bound_below_the_maximum_is_never_proven(rank: int) -> None:
    generator = np.random.default_rng(rank)
    for _ in range(10):
        rows, duals = generator.standard_normal((8, rank)), generator.standard_normal((8, 1))
        truth = exact_dual_norm(rows, duals[:, 0], one_sided=True)
        if truth < 0.1:
            continue
        problem = SphereProblem(rows=rows, duals=duals, linear=np.zeros((rank, 1)), one_sided=True)
        for distance in (1e-4, 1e-8, 1e-12):
            assert not forest(problem).advance(truth * (1 - distance), 100_000).is_proven
        above = forest(problem)
        assert above.advance(truth * (1 + 1e-6), 100_000).is_proven
        assert above.proven_fraction == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("num_outputs", [2, 3, 5])
def test_a_vector_bound_below_the_maximum_is_never_proven(num_outputs: int) -> None:
    generator = np.random.default_rng(num_outputs)
    for _ in range(6):
        rows, duals = generator.standard_normal((9, 2)), generator.standard_normal((9, num_outputs))
        truth = exact_planar_dual_norm(rows, duals)
        problem = SphereProblem(rows=rows, duals=duals, linear=np.zeros((2, num_outputs)))
        for distance in (1e-4, 1e-8, 1e-12):
            assert not forest(problem).advance(truth * (1 - distance), 100_000).is_proven
        assert forest(problem).advance(truth * (1 + 1e-6), 100_000).is_proven


def test_a_search_that_stalls_reports_where_and_goes_on_with_a_larger_bound() -> None:
    """Orthonormal rows with equal duals: the maximiser (1, 1, 1) is a corner of cells at every depth."""
    problem = SphereProblem(rows=np.eye(3), duals=np.ones((3, 1)), linear=np.zeros((3, 1)), one_sided=True)
    trees = forest(problem)
    progress = trees.advance(math.sqrt(3.0) * (1 + 1e-15), 100_000)
    assert progress.is_stalled
    assert not progress.is_proven
    assert progress.witnesses[-1] == pytest.approx(np.full(3, 3.0**-0.5), abs=1e-6)
    assert trees.advance(math.sqrt(3.0) * (1 + 1e-6), 100_000).is_proven


@pytest.mark.parametrize("batch", [1, 7, 4096])
def test_every_batch_size_proves_the_whole_surface_once(batch: int) -> None:
    problem = random_problem(16, 40, 4)
    trees = forest(problem, batch=batch)
    assert trees.advance(1.05 * search(problem).upper, 1_000_000).is_proven
    assert trees.proven_fraction == pytest.approx(1.0, abs=1e-12)


def test_what_is_found_does_not_depend_on_the_length_of_rounds() -> None:
    problem = random_problem(17, 40, 4)
    bound = 1.01 * search(problem).upper
    counts = []
    for round_length in (1, 100, 10_000):
        trees = forest(problem)
        while not trees.advance(bound, round_length).is_proven:
            pass
        counts.append(trees.cells)
    assert len(set(counts)) == 1


def test_a_cell_budget_is_kept_and_deterministic() -> None:
    problem = random_problem(18, 80, 7)
    first, second = (search(problem, max_cells=3000, rtol=1e-6, batch_size=256) for _ in range(2))
    assert first.stats["limited_by"] == "max_cells"
    assert float(first.stats["cells"]) <= 3000 + 256
    assert (first.upper, first.lower, first.stats) == (second.upper, second.lower, second.stats)
    assert math.isfinite(first.upper)


def test_deadline_is_kept_and_leaves_a_bound() -> None:
    problem = random_problem(19, 300, 12)
    begin = time.process_time()
    found = search(problem, rtol=1e-6, seconds=0.5)
    assert time.process_time() - begin < 5.0
    assert math.isfinite(found.upper)
    assert found.stats["limited_by"] == "time"


def test_auto_two_layer_oracle_uses_it_if_it_is_given() -> None:
    case = rank_three_cases()[0]
    oracle = AutoTwoLayerOracle(boxes=BatchedBoxBranchAndBound(device="cpu"))
    request = BoundRequest(rtol=1e-3, deadline=Deadline(20.0))
    found = oracle.bound(oracle.init(case.spec, case.inputs), case.dual_point, request)
    assert found.stats["oracle"] == "BatchedBoxBranchAndBound"
    assert case.truth is not None
    assert case.truth * (1 - 1e-12) <= found.upper <= 1.0011 * case.truth


class _PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that are alive; an in-place or viewing operation adds nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        if storage.data_ptr() == 0 or storage.data_ptr() in self._known:
            return
        self._known.add(storage.data_ptr())
        self.current += storage.nbytes()
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._forget, storage.data_ptr(), storage.nbytes())

    def _forget(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.current -= size


@pytest.mark.parametrize(("n", "rank", "num_outputs"), [(400, 6, 1), (400, 5, 2), (100, 5, 6), (8, 6, 1)])
@pytest.mark.parametrize("memory_bytes", [2**19, 2**22])
def test_memory_stays_within_the_budget(n: int, rank: int, num_outputs: int, memory_bytes: int) -> None:
    problem = random_problem(20, n, rank, num_outputs=num_outputs)
    oracle = BatchedBoxBranchAndBound(device="cpu", memory_bytes=memory_bytes, batch_size=10**9)
    with _PeakMemory() as memory:
        trees = oracle._forest(problem, False)
        for _ in range(25):  # a bound that is never proven: the stack fills up
            trees.advance(1e-3 * problem.magnitude(), 1)
    assert memory_bytes / 8 < memory.peak <= memory_bytes


def test_a_full_stack_slows_the_search_down_and_no_more() -> None:
    problem = random_problem(21, 30, 4)
    bound = 1.05 * search(problem).upper
    waiting = 26 * 3 + 12
    narrow = forest(problem, waiting=waiting)
    longest = 0
    while not narrow.advance(bound, 1).is_proven:
        longest = max(longest, len(narrow._stack))
    assert longest <= waiting
    assert narrow.proven_fraction == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:99"}, "'cuda:99'.*a device that is there"),
        ({"device": "nowhere"}, "'nowhere'.*a device that is there"),
        ({"memory_bytes": 0}, "`memory_bytes` is 0"),
        ({"batch_size": -1}, "`batch_size` is -1"),
        ({"max_cells": 0}, "`max_cells` is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        BatchedBoxBranchAndBound(**options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_outputs", [1, 4])
def test_cuda_gives_the_bounds_of_the_cpu_within_its_memory(num_outputs: int) -> None:
    problem = random_problem(22, 200, 5, num_outputs=num_outputs)
    device = torch.device("cuda")
    centre, width = (torch.from_numpy(array) for array in random_cells(22, 5, 500))
    bound = 0.3 * problem.magnitude()
    here = BatchedCells(problem, CPU).evaluate(centre, width, bound)
    there = BatchedCells(problem, device).evaluate(centre.to(device), width.to(device), bound)
    is_finite = torch.isfinite(here.excess)
    assert torch.equal(is_finite, torch.isfinite(there.excess).cpu())
    torch.testing.assert_close(
        there.excess.cpu()[is_finite], here.excess[is_finite], rtol=1e-12, atol=1e-12 * problem.magnitude()
    )
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = search(problem, device="cuda", memory_bytes=2**26)
    assert torch.cuda.max_memory_allocated() - before <= 2**26
    expected = search(problem)
    assert found.upper <= 1.0011 * expected.lower
    assert expected.upper <= 1.0011 * found.lower
