from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from torch_strongdual.certification.oracles._verified_psd import gamma, semidefinite_shift


def test_gamma_exceeds_the_error_of_long_sums() -> None:
    values = np.random.default_rng(0).standard_normal(1000)
    exact = sum((Fraction(float(v)) for v in values), Fraction(0))
    assert abs(Fraction(float(np.cumsum(values)[-1])) - exact) <= Fraction(gamma(1000)) * Fraction(float(np.abs(values).sum()))


@pytest.mark.parametrize("size", [1, 2, 5, 20])
def test_semidefinite_matrices_need_a_shift_of_rounding_size(size: int) -> None:
    generator = np.random.default_rng(size)
    for rank in range(1, size + 1):
        factor = generator.integers(-5, 6, (size, rank)).astype(np.float64)
        matrix = factor @ factor.T  # integers: exactly semidefinite, exactly singular for rank < size
        assert 0.0 <= semidefinite_shift(matrix) <= 1e-11 * (1.0 + np.trace(matrix))


@pytest.mark.parametrize("depth", [1e-16, 1e-14, 1e-12, 1e-9])
def test_the_shift_covers_a_negative_eigenvalue(depth: float) -> None:
    # [[1, 1], [1, 1 - e]] has the determinant -e and the trace 2 - e: its least eigenvalue is at most -e/2.
    e = 1.0 - (1.0 - depth)
    assert semidefinite_shift(np.array([[1.0, 1.0], [1.0, 1.0 - e]])) >= 0.5 * e


def test_indefinite_or_non_finite_matrices_are_not_shifted_for_ever() -> None:
    assert semidefinite_shift(-np.eye(3)) == math.inf or semidefinite_shift(-np.eye(3)) >= 1.0
    assert semidefinite_shift(np.array([[math.nan]])) == math.inf
    assert semidefinite_shift(np.array([[math.inf]])) == math.inf
