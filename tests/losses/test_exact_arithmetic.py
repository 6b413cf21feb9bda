"""The arithmetic under the proofs against rational numbers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.references.conjugates import are_zero_sums
from torch_strongdual.losses._lattice import exactly_feasible
from torch_strongdual.losses._rounding import (
    exact_product,
    exact_sum,
    quotient_down,
    row_distances,
    sum_down,
    sum_up,
)

ordinary = st.floats(min_value=-1e100, max_value=1e100).filter(lambda number: number == 0 or abs(number) > 1e-100)
positive = st.floats(min_value=1e-100, max_value=1e100)


@given(left=ordinary, right=ordinary)
def test_products_and_sums_with_their_errors_are_exact(left: float, right: float) -> None:
    product, product_error = exact_product(np.array([left]), right)
    total, total_error = exact_sum(np.array([left]), np.array([right]))
    assert Fraction(product[0]) + Fraction(product_error[0]) == Fraction(left) * Fraction(right)
    assert Fraction(total[0]) + Fraction(total_error[0]) == Fraction(left) + Fraction(right)


@given(numerator=positive, divisor=positive)
def test_quotient_is_the_largest_float_below(numerator: float, divisor: float) -> None:
    quotient = float(quotient_down(np.array([numerator]), divisor)[0])
    exact = Fraction(numerator) / Fraction(divisor)
    assert Fraction(quotient) <= exact < Fraction(math.nextafter(quotient, math.inf))


@given(terms=st.lists(ordinary, min_size=1, max_size=30))
def test_directed_sums_enclose_the_sum(terms: list[float]) -> None:
    exact = sum(map(Fraction, terms))
    low, high = sum_down(np.array(terms)), sum_up(np.array(terms))
    assert Fraction(low) <= exact <= Fraction(high)
    assert high <= math.nextafter(math.nextafter(low, math.inf), math.inf)


def test_directed_sums_that_overflow_say_nothing() -> None:
    for terms in ([1e308, 1e308], [math.nan], [math.inf, -math.inf], [math.inf]):
        assert sum_down(np.array(terms)) == -math.inf
        assert sum_up(np.array(terms)) == math.inf


@given(values=st.lists(ordinary, min_size=6, max_size=6), tilt=st.floats(-1e-15, 1e-15))
def test_row_distances_are_upper_bounds(values: list[float], tilt: float) -> None:
    left = np.array(values).reshape(2, 3)
    right = left * (1 + tilt) + tilt
    for row_left, row_right, distance in zip(left, right, row_distances(left, right), strict=True):
        square = sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(row_left.tolist(), row_right.tolist(), strict=True))
        assert square <= Fraction(float(distance)) ** 2
        assert square * (1 + Fraction(1, 10**13)) >= Fraction(float(distance)) ** 2 or distance < 1e-299


@pytest.mark.parametrize("num_classes", [2, 10])
def test_lattice_points_of_many_samples_balance_exactly(num_classes: int) -> None:
    rng = np.random.default_rng(0)
    num_samples = 2000
    point = rng.standard_normal((num_samples, num_classes)) * 10.0 ** rng.uniform(-12, 0, size=(num_samples, 1))
    for _ in range(3):
        point -= point.mean(axis=1, keepdims=True)
        point -= point.mean(axis=0)
    # A third of the entries is at the bound, so that room must be looked for.
    upper = np.where(rng.uniform(size=point.shape) < 0.3, np.maximum(point, 0.0), np.abs(point) + 1e-3)
    point = np.where(point > upper, upper, point)
    feasible = exactly_feasible(
        point, np.full_like(point, -np.inf), upper, magnitude=np.abs(point) + 1e-3, zero_rows=True, zero_columns=True
    )
    assert feasible is not None
    assert are_zero_sums(feasible, axis=0)
    assert are_zero_sums(feasible, axis=1)
    assert (feasible <= upper).all()
    assert np.abs(feasible - point).max() <= 1e-12


def test_lattice_points_of_columns_of_very_different_sizes() -> None:
    rng = np.random.default_rng(1)
    point = rng.standard_normal((500, 3)) * np.array([1e-150, 1.0, 1e150])
    point -= point.mean(axis=0)
    infinite = np.full_like(point, np.inf)
    feasible = exactly_feasible(point, -infinite, infinite, magnitude=np.abs(point), zero_rows=False, zero_columns=True)
    assert feasible is not None
    assert are_zero_sums(feasible, axis=0)
    assert (np.abs(feasible - point).max(axis=0) <= 1e-13 * np.abs(point).max(axis=0)).all()


def test_numbers_near_underflow_become_zero() -> None:
    point = np.array([[1e-305], [-1e-305 * (1 + 2**-52)]])
    infinite = np.full_like(point, np.inf)
    feasible = exactly_feasible(point, -infinite, infinite, magnitude=np.ones_like(point), zero_rows=False, zero_columns=True)
    assert feasible is not None
    assert are_zero_sums(feasible, axis=0)
