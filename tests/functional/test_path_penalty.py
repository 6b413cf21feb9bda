from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torch_strongdual.errors import InvalidInputError, ShapeError
from torch_strongdual.functional import PATH_PENALTIES, path_penalty, product_penalty, rebalanced

from ..references.path_penalties import penalty_of_branch


def random_weights(num_layers: int, num_branches: int = 4, seed: int = 0, width: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    widths = [2, *[width] * (num_layers - 1), 2]
    shapes = [(num_branches, fan_out, fan_in) for fan_in, fan_out in itertools.pairwise(widths)]
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


@pytest.mark.parametrize("kind", PATH_PENALTIES)
@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
class TestPathPenalty:
    def test_equals_definition(self, kind: str, num_layers: int) -> None:
        weights = random_weights(num_layers)
        expected = [penalty_of_branch([weight[k].numpy() for weight in weights], kind) for k in range(4)]
        np.testing.assert_allclose(path_penalty(weights, kind).numpy(), expected, rtol=1e-13)

    def test_derivatives_up_to_second_order(self, kind: str, num_layers: int) -> None:
        weights = [weight.requires_grad_() for weight in random_weights(num_layers, num_branches=2)]

        def penalty(*layers: Tensor) -> Tensor:
            return path_penalty(layers, kind)

        assert torch.autograd.gradcheck(penalty, weights)
        assert torch.autograd.gradgradcheck(penalty, weights)

    @pytest.mark.parametrize("zero_layers", ["first", "last", "all"])
    def test_zero_layers_give_finite_derivatives(self, kind: str, num_layers: int, zero_layers: str) -> None:
        weights = random_weights(num_layers)
        for weight in {"first": weights[:1], "last": weights[-1:], "all": weights}[zero_layers]:
            weight[1] = 0
        leaves = [weight.requires_grad_() for weight in weights]
        penalties = path_penalty(leaves, kind)
        gradients = torch.autograd.grad(penalties.sum(), leaves, create_graph=True)
        squares = torch.stack([gradient.square().sum() for gradient in gradients])
        second = torch.autograd.grad(squares.sum(), leaves)
        if kind != "power" or zero_layers == "all":
            assert penalties[1] == 0
            assert all((gradient[1] == 0).all() for gradient in gradients)
        assert all(tensor.isfinite().all() for tensor in (*gradients, *second))

    def test_homogeneous_in_every_layer(self, kind: str, num_layers: int) -> None:
        weights = random_weights(num_layers)
        factor = 1.7
        if kind == "power":  # homogeneous of degree L in all layers together
            scaled = path_penalty([factor * weight for weight in weights], kind)
            torch.testing.assert_close(scaled, factor**num_layers * path_penalty(weights, kind))
            return
        for index in range(num_layers):
            layers = [factor * weight if i == index else weight for i, weight in enumerate(weights)]
            torch.testing.assert_close(path_penalty(layers, kind), factor * path_penalty(weights, kind))


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 10_000))
def test_order_of_the_forms(num_layers: int, width: int, seed: int) -> None:
    weights = random_weights(num_layers, seed=seed, width=width)
    product, power, path = (path_penalty(weights, kind) for kind in ("product", "power", "l2_path"))
    assert (power >= product * (1 - 1e-14)).all()
    assert (path <= product * (1 + 1e-14)).all()
    torch.testing.assert_close(path_penalty(rebalanced(weights), "power"), product)


def test_l2_path_equals_product_for_single_units() -> None:
    weights = random_weights(4, width=1)
    torch.testing.assert_close(path_penalty(weights, "l2_path"), path_penalty(weights, "product"))


def test_l2_path_is_unchanged_by_rescaling_a_unit() -> None:
    first, last = random_weights(2)
    scale = torch.tensor([0.1, 3.0, 7.0], dtype=torch.float64)
    torch.testing.assert_close(
        path_penalty([first * scale[:, None], last / scale], "l2_path"), path_penalty([first, last], "l2_path")
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["product", "l2_path"])
def test_extreme_magnitudes_cancel(dtype: torch.dtype, kind: str) -> None:
    exponent = math.frexp(torch.finfo(dtype).max)[1] - 2
    large, small = torch.full((1, 2, 2), 2.0**exponent, dtype=dtype), torch.full((1, 2, 2), 2.0**-exponent, dtype=dtype)
    ones = torch.ones(1, 2, 2, dtype=dtype)
    torch.testing.assert_close(path_penalty([large, small, ones], kind), path_penalty([ones, ones, ones], kind))
    torch.testing.assert_close(path_penalty([small, large], kind), path_penalty([ones, ones], kind))


@pytest.mark.parametrize("kind", PATH_PENALTIES)
def test_non_finite_weights_never_look_fine(kind: str) -> None:
    weights = random_weights(3)
    weights[0][0, 0, 0] = math.nan
    weights[1][1, 0, 0] = math.inf
    penalties = path_penalty(weights, kind)
    assert not penalties[:2].isfinite().any()
    assert penalties[2:].isfinite().all()


def test_overflow_is_infinite_and_underflow_zero() -> None:
    huge, tiny = torch.full((1, 1, 1), 1e300, dtype=torch.float64), torch.full((1, 1, 1), 1e-300, dtype=torch.float64)
    assert product_penalty([huge, huge]).item() == math.inf
    assert product_penalty([tiny, tiny]).item() == 0
    assert product_penalty([tiny, tiny, huge, huge]).item() == pytest.approx(1.0, rel=1e-14)
    assert product_penalty([huge, huge, 0 * huge]).item() == 0


def test_no_branches() -> None:
    assert path_penalty(random_weights(2, num_branches=0)).shape == (0,)


ERRORS: list[tuple[Sequence[Tensor], str, type[Exception], str]] = [
    ([], "product", InvalidInputError, "`weights` is empty"),
    (random_weights(2), "sum", InvalidInputError, "`kind` is 'sum'; expected one of 'product', 'power', 'l2_path'"),
    ([torch.ones(2, 3)], "product", ShapeError, r"`weights\[0\]` has 2 dimensions \(shape \(2, 3\)\)"),
    ([torch.ones(1, 2, 3, dtype=torch.int64)], "power", InvalidInputError, "dtype torch.int64"),
    ([torch.ones(1, 2, 3), torch.ones(1, 1, 3)], "l2_path", ShapeError, "takes 3 inputs .* has 2 outputs"),
    ([torch.ones(1, 2, 3), torch.ones(2, 1, 2)], "product", ShapeError, "has 2 branches .* has 1"),
    ([torch.ones(1, 0, 3)], "product", ShapeError, "at least 1"),
]


@pytest.mark.parametrize(("weights", "kind", "error", "message"), ERRORS)
def test_errors(weights: Sequence[Tensor], kind: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        path_penalty(weights, kind)
