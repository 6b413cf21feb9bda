from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torch_strongdual.certification.oracles._doubly_nonnegative._joint.moment_halves import moment_halves
from torch_strongdual.certification.oracles._doubly_nonnegative._joint.piecewise_root import piecewise_root


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TestPiecewiseRoot:
    @pytest.mark.parametrize("seed", range(5))
    def test_the_function_written_as_a_sum_of_ramps_is_zero_there(self, seed: int) -> None:
        low, value = random(7, seed=seed), -random(7, seed=seed + 50).abs()
        bends = low + random(6, 7, seed=seed + 100).abs()
        up = random(6, 7, seed=seed + 150).abs()
        down = -0.15 * random(6, 7, seed=seed + 200).abs().clamp(max=1.0)  # not below a slope of 2 - 6 * 0.15
        growth = torch.where(random(6, 7, seed=seed + 250) > 0.0, up, down)
        slope = torch.full((7,), 2.0, dtype=torch.float64)
        root = piecewise_root(low, value, slope, bends, growth)
        reached = value + slope * (root - low) + (growth * (root - bends).clamp(min=0.0)).sum(0)
        assert bool((root >= low).all())
        assert float(reached.abs().max()) < 1e-13

    def test_bends_at_the_start_and_far_beyond_the_root(self) -> None:
        low = torch.zeros(1, dtype=torch.float64)
        bends, growth = torch.tensor([[0.0], [1e300]], dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
        assert piecewise_root(low, low - 3.0, low + 0.5, bends, growth).item() == pytest.approx(2.0, rel=1e-15)


class TestMomentHalves:
    @pytest.mark.parametrize("seed", range(3))
    def test_a_semidefinite_sum_in_which_one_entry_rests(self, seed: int) -> None:
        factor = random(8, 5, seed=seed)
        factor[4] -= (factor[4] @ factor[2]) / (factor[2] @ factor[2]) * factor[2]  # never both at work
        moments = factor @ factor.T
        on, off = moment_halves(moments, 2, 4)
        torch.testing.assert_close(on + off, moments)
        for half, resting in ((on, 4), (off, 2)):
            assert float(half[resting].abs().max()) < 1e-13
            assert float(torch.linalg.eigvalsh(half).min()) > -1e-12

    def test_an_entry_that_is_zero_already(self) -> None:
        moments = torch.diag(torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64))
        on, off = moment_halves(moments, 2, 1)
        torch.testing.assert_close(on, torch.diag(torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)))
        torch.testing.assert_close(off, torch.diag(torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64)))
