"""The squared loss of the theory as a module."""

from __future__ import annotations

import pytest
import torch

from torch_strongdual.errors import ShapeError
from torch_strongdual.losses import HalfSquaredLoss


def test_value_and_gradient() -> None:
    outputs = torch.tensor([[1.0, 2.0], [3.0, 5.0]], requires_grad=True)
    targets = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    loss = HalfSquaredLoss()(outputs, targets)
    loss.backward()
    assert loss.item() == 0.5 * (1 + 0 + 4 + 16)
    assert outputs.grad is not None
    assert torch.equal(outputs.grad, outputs.detach() - targets)


def test_broadcasting_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(3, 1\) and `targets` \(3,\)"):
        HalfSquaredLoss()(torch.ones(3, 1), torch.ones(3))
