from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from torch_strongdual.certification.oracles.row_space import RowSpace, power_of_two_scale

FloatArray = NDArray[np.float64]


def matrix_of_rank(generator: np.random.Generator, rows: int, columns: int, rank: int) -> FloatArray:
    return generator.standard_normal((rows, rank)) @ generator.standard_normal((rank, columns))


def check_bounds(matrix: FloatArray, reduced: RowSpace) -> None:
    """The two promises, evaluated in extended precision."""
    rows, basis = reduced.rows.astype(np.longdouble), reduced.basis.astype(np.longdouble)
    error = matrix.astype(np.longdouble) - rows @ basis.T
    assert np.sqrt((error**2).sum()) <= reduced.remainder
    gram = basis.T @ basis
    # Gershgorin bounds the largest eigenvalue from above: a stronger claim than the one made, up to its own looseness
    defect = np.sqrt(((gram - np.eye(reduced.rank)) ** 2).sum())
    assert np.sqrt(1.0 + defect) <= reduced.basis_norm


@pytest.mark.parametrize(("rows", "columns", "rank"), [(1, 1, 1), (8, 3, 3), (3, 8, 3), (30, 6, 2), (5, 40, 4)])
def test_rank_and_bounds(rows: int, columns: int, rank: int) -> None:
    matrix = matrix_of_rank(np.random.default_rng(rank), rows, columns, rank)
    reduced = RowSpace.of(matrix)
    assert reduced.rank == rank
    check_bounds(matrix, reduced)
    assert reduced.remainder <= 1e-12 * np.linalg.norm(matrix)
    assert reduced.basis_norm <= 1 + 1e-12
    lengths = np.linalg.norm(reduced.rows, axis=0)
    assert (np.diff(lengths) <= 1e-12 * lengths[0]).all(), "principal axes, largest first"


@pytest.mark.parametrize("dropped", [1e-3, 1e-6])
def test_what_is_dropped_on_purpose_is_in_the_remainder(dropped: float) -> None:
    generator = np.random.default_rng(0)
    left, right = (np.linalg.qr(generator.standard_normal((6, 3)))[0] for _ in range(2))
    matrix = left @ np.diag([1.0, 0.5, 0.5 * dropped]) @ right.T
    reduced = RowSpace.of(matrix, drop_below=dropped)
    assert reduced.rank == 2
    check_bounds(matrix, reduced)
    assert 0.5 * dropped <= reduced.remainder <= 0.5 * dropped * (1 + 1e-6)


def test_a_zero_matrix_has_rank_zero() -> None:
    reduced = RowSpace.of(np.zeros((4, 3)))
    assert reduced.rank == 0
    assert reduced.rows.shape == (4, 0)
    check_bounds(np.zeros((4, 3)), reduced)


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9), st.floats(-12, 0))
def test_bounds_hold_for_graded_columns(seed: int, rows: int, columns: int, exponent: float) -> None:
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((rows, columns)) * np.logspace(exponent, 0, columns)
    check_bounds(matrix, RowSpace.of(matrix))


@given(st.integers(0, 10**6))
def test_loss_of_reduction_covers_lipschitz_functions(seed: int) -> None:
    """``|sum_i c_i |(A u)_i| - c_i |(B V'u)_i||`` over unit vectors u, with a direction dropped."""
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((6, 4)) * np.array([1.0, 1.0, 0.3, 0.05])
    reduced = RowSpace.of(matrix, drop_below=0.3)
    slopes = generator.uniform(0, 2, 6)
    points = generator.standard_normal((50, 4))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    before = np.abs(points @ matrix.T) @ slopes
    after = np.abs(points @ reduced.basis @ reduced.rows.T) @ slopes
    assert (np.abs(before - after) <= reduced.loss_of_reduction(slopes) + 1e-13).all()


@pytest.mark.parametrize("value", [5e-324, 1e-310, 1.0, 1.5, 2.0 - 2**-52, 1e300, 1.7e308])
def test_scale_is_the_power_of_two_below_the_largest_entry(value: float) -> None:
    scale = power_of_two_scale(np.array([[value, -value / 3]]))
    assert np.frexp(scale)[0] == 0.5
    assert 1.0 <= value / scale < 2.0


@pytest.mark.parametrize("matrix", [np.zeros((2, 2)), np.zeros((0, 3))])
def test_scale_of_nothing_is_one(matrix: FloatArray) -> None:
    assert power_of_two_scale(matrix) == 1.0
