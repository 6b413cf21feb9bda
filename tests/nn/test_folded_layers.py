from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.nn import GatedReLU, ParallelNet, ParallelWeights, parallel_weights
from torch_strongdual.nn._folded_layers import can_be_folded, folded_layers, gated_sum

from ._networks import looped_outputs


def linear(fan_in: int, fan_out: int) -> nn.Linear:
    return nn.Linear(fan_in, fan_out, bias=False)


NETWORKS: dict[str, Callable[[], list[nn.Module]]] = {
    "linear": lambda: [linear(3, 5), linear(5, 2)],
    "deep linear, narrow at the end": lambda: [linear(3, 9), linear(9, 4), nn.Identity(), linear(4, 1), linear(1, 2)],
    "with biases outside": lambda: [nn.Linear(3, 5), linear(5, 4), nn.Linear(4, 2)],
    "gated": lambda: [linear(3, 5), GatedReLU(3), linear(5, 2)],
    "gated twice": lambda: [linear(3, 5), GatedReLU(3), linear(5, 4), linear(4, 3), GatedReLU(3), nn.Linear(3, 2)],
}


def make(kind: str, num_branches: int = 4) -> tuple[ParallelNet, ParallelWeights]:
    torch.manual_seed(0)
    net = ParallelNet(*NETWORKS[kind](), num_branches=num_branches, dtype=torch.float64)
    return net, ParallelWeights.from_module(net)


def unfolded(weights: ParallelWeights, monkeypatch: pytest.MonkeyPatch, inputs: Tensor) -> tuple[Tensor, Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(parallel_weights, "can_be_folded", lambda *args, **options: False)
        return weights.outputs(inputs), weights.output_error(inputs)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("budget", [1, 60, 2**22])
def test_outputs_and_errors_are_those_of_layer_after_layer(kind: str, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_weights, "_CHUNK_NUMBERS", budget)
    net, weights = make(kind)
    inputs = torch.randn(7, 3, dtype=torch.float64)
    assert can_be_folded(weights.weights, weights.spec.negative_slopes, is_gated=weights.spec.is_gated)
    expected, expected_error = unfolded(weights, monkeypatch, inputs)
    error = weights.output_error(inputs)
    torch.testing.assert_close(weights.outputs(inputs), expected, rtol=0.0, atol=float((error + expected_error).max()))
    torch.testing.assert_close(weights.outputs(inputs), looped_outputs(net, inputs).detach())
    torch.testing.assert_close(error, expected_error)


@pytest.mark.parametrize("kind", ["linear", "deep linear, narrow at the end"])
@pytest.mark.parametrize("scale", [2.0**180, 2.0**-180, 1e-160, 1e150])
def test_the_error_bound_holds_at_extreme_sizes(kind: str, scale: float) -> None:
    net, _ = make(kind)
    with torch.no_grad():
        net.branch_weights()[0].mul_(scale)
        net.branch_weights()[-1].div_(scale)
    weights, inputs = ParallelWeights.from_module(net), torch.randn(3, 3, dtype=torch.float64)
    outputs, error = weights.outputs(inputs), weights.output_error(inputs)
    for sample, row in enumerate(inputs.tolist()):
        for output in range(2):
            exact = sum(_exact(net, k, row)[output] for k in range(4))
            assert abs(Fraction(float(outputs[sample, output])) - exact) <= Fraction(float(error[sample, output]))
    assert (error < 1e-10).all()  # and it is of use


def _exact(net: ParallelNet, k: int, row: list[float]) -> list[Fraction]:
    hidden = [Fraction(value) for value in row]
    for weight in net.branch_weights():
        units = weight[k].detach().tolist()
        hidden = [sum((Fraction(w) * h for w, h in zip(unit, hidden, strict=True)), Fraction(0)) for unit in units]
    return hidden


def test_it_is_left_alone_where_it_is_not_the_same_or_saves_nothing() -> None:
    first, last = torch.ones(2, 4, 3, dtype=torch.float64), torch.ones(2, 2, 4)
    assert can_be_folded([first, last], [1.0], is_gated=True)
    assert not can_be_folded([first, last], [0.0], is_gated=False)  # a ReLU
    assert not can_be_folded([first], [], is_gated=False)  # one layer
    assert not can_be_folded([first, torch.ones(2, 5, 4)], [1.0], is_gated=True)  # more outputs than hidden units
    assert can_be_folded([first, torch.ones(2, 5, 4)], [1.0], is_gated=False)
    assert not can_be_folded([1e200 * first, last], [1.0], is_gated=False)
    assert not can_be_folded([1e-200 * first, last], [1.0], is_gated=False)
    assert not can_be_folded([first / 0.0, last], [1.0], is_gated=False)
    assert can_be_folded([0.0 * first, last], [1.0], is_gated=False)


def test_parts() -> None:
    first, last = torch.randn(5, 4, 3, dtype=torch.float64), torch.randn(5, 2, 4, dtype=torch.float64)
    each = folded_layers([first, last], lambda product: product, is_gated=True)
    torch.testing.assert_close(each, last @ first)
    torch.testing.assert_close(folded_layers([first, last], lambda product: product, is_gated=False), each.sum(0))
    torch.testing.assert_close(folded_layers([first, last], lambda product: product + 1.0, is_gated=True), each + 1.0)
    matrix, masks = torch.randn(6, 3, dtype=torch.float64), torch.randint(0, 2, (5, 6)).double()
    expected = sum((masks[k, :, None] * (matrix @ each[k].T) for k in range(5)), torch.zeros(()))
    for chunk in (1, 2, 9):
        torch.testing.assert_close(gated_sum(matrix, each, masks, chunk), expected)
