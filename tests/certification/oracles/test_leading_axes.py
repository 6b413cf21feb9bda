from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.references.enumeration import exact_dual_norm
from torch_strongdual.certification import Deadline
from torch_strongdual.certification.oracles import AutoTwoLayerOracle, BoundRequest, BoxBranchAndBound
from torch_strongdual.certification.oracles._leading_axes import bound_by_leading_axes, remainder_bound
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem
from torch_strongdual.nn import BranchActivation, BranchSpec

FLAT = 0.05  # size of the last axes


def problem(seed: int, *, flatness: float = FLAT, linear: float = 0.0) -> SphereProblem:
    """Six rows of rank five, the last two axes small."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((6, 5)) * np.array([1.0, 1.0, 1.0, flatness, flatness])
    duals = generator.standard_normal((6, 1))
    return SphereProblem(rows=rows, duals=duals, linear=linear * generator.standard_normal((5, 1)), one_sided=True)


class TestSoundness:
    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("linear", [0.0, 0.3])
    def test_never_below_complete_enumeration_and_near_it_on_flat_data(self, seed: int, linear: float) -> None:
        given = problem(seed, linear=linear)
        truth = exact_dual_norm(given.rows, given.duals[:, 0], given.linear[:, 0], one_sided=True)
        start = np.eye(5)[:1]
        floor = truth + 2.01 * remainder_bound(given, 3)
        asked = BoundRequest(rtol=1e-3, floor=floor, deadline=Deadline(20.0))
        found = bound_by_leading_axes(BoxBranchAndBound(num_threads=1), given, asked, start, max_rank=3)
        assert found is not None
        assert truth * (1 - 1e-9) <= found.upper <= floor
        assert found.lower <= truth * (1 + 1e-9)

    @pytest.mark.parametrize("seed", range(20))
    def test_remainder_covers_every_choice_of_slopes(self, seed: int) -> None:
        """The maximum of a convex function over a cube is at a vertex: all of them are tried."""
        given = problem(seed, flatness=1.0, linear=0.5)
        bound = remainder_bound(given, 3)
        vertices = (np.arange(2**6)[:, None] >> np.arange(6)) & 1
        sums = given.linear[3:, 0] + (vertices * given.duals[:, 0]) @ given.rows[:, 3:]
        worst = float(np.linalg.norm(sums, axis=1).max())
        assert worst <= bound <= 2.5 * worst

    def test_only_a_remainder_without_rows(self) -> None:
        given = SphereProblem(rows=np.zeros((0, 3)), duals=np.zeros((0, 1)), linear=np.array([[0.0], [3.0], [4.0]]))
        assert remainder_bound(given, 1) == pytest.approx(5.0, rel=1e-12)


class TestUse:
    def test_refuses_where_much_would_be_lost(self) -> None:
        given = problem(0, flatness=1.0)
        asked = BoundRequest(rtol=1e-2, deadline=Deadline(5.0))
        assert bound_by_leading_axes(BoxBranchAndBound(num_threads=1), given, asked, np.eye(5)[:1], max_rank=3) is None

    def test_many_samples_of_high_rank_with_a_steep_spectrum_are_bounded_closely(self) -> None:
        """Six hundred rows of rank thirty: neither boxes nor the doubly nonnegative relaxation reach this."""
        generator = torch.Generator().manual_seed(0)
        scales = 1e-3 ** (torch.arange(30, dtype=torch.float64) / 4.0).clamp(max=1.0)
        inputs = torch.randn(600, 30, generator=generator, dtype=torch.float64) * scales
        duals = torch.randn(600, 1, generator=generator, dtype=torch.float64)
        oracle = AutoTwoLayerOracle()
        state = oracle.init(BranchSpec(widths=(30, 1, 1), activations=(BranchActivation(),)), inputs)
        found = oracle.bound(state, duals, BoundRequest(rtol=1e-2, deadline=Deadline(60.0)))
        assert found.lower <= found.upper <= 1.01 * found.lower
