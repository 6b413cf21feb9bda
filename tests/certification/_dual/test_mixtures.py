from __future__ import annotations

import torch

from torch_strongdual.certification._dual.mixtures import Mixtures

NEAR, SETTLED = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]])


def test_the_settled_point_comes_first_and_is_gone_on_with_until_it_is_met() -> None:
    mixtures = Mixtures()
    first = mixtures.next_between(NEAR, SETTLED, 1.0)
    assert first is not None
    assert torch.equal(first, SETTLED)
    mixtures.learn(seconds=1.0, is_met=False)
    assert mixtures.next_between(NEAR, 2.0 * SETTLED, 1.0) is first


def test_points_move_towards_the_residual_the_farther_the_more_time_there_is() -> None:
    shares = []
    for seconds in (3.0, 6.0, 1e6):
        mixtures = Mixtures()
        mixtures.next_between(NEAR, SETTLED, seconds)
        mixtures.learn(seconds=1.0, is_met=True)
        point = mixtures.next_between(NEAR, SETTLED, seconds)
        assert point is not None
        shares.append(float(point[0]))
        assert torch.allclose(point, NEAR + shares[-1] * (SETTLED - NEAR))
    assert 1.0 > shares[0] > shares[1] > shares[2] == 0.5


def test_without_time_for_a_harder_point_there_is_none_until_there_is() -> None:
    mixtures = Mixtures()
    mixtures.next_between(NEAR, SETTLED, 10.0)
    mixtures.learn(seconds=5.0, is_met=True)
    assert mixtures.next_between(NEAR, SETTLED, 0.0) is None
    assert mixtures.next_between(NEAR, SETTLED, 5.0) is None
    assert mixtures.next_between(NEAR, SETTLED, 500.0) is not None
