"""Merging rows of patches: exact, and never anything else than the same sum."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from torch_strongdual.certification.oracles._patches.merged_rows import MergedRows

INTEGERS = arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.integers(-4, 4).map(float))
FLOATS = arrays(np.float64, (6, 2), elements=st.floats(-1e300, 1e300, allow_nan=False, allow_subnormal=True))


class TestMergedRows:
    @settings(max_examples=60, deadline=None)
    @given(st.one_of(INTEGERS, FLOATS))
    @example(np.array([[7.5e-154, 0.0], [8.6e155, 0.0]]))  # the quotient is too small to be exact
    def test_rows_are_exact_multiples_of_merged_rows(self, matrix: np.ndarray) -> None:
        merged = MergedRows.of(matrix)
        for row, group, factor in zip(matrix.tolist(), merged.groups.tolist(), merged.factors.tolist(), strict=True):
            if group < 0:
                assert not any(row)
                continue
            assert factor > 0
            products = [Fraction(factor) * Fraction(entry) for entry in merged.rows[group].tolist()]
            assert products == [Fraction(entry) for entry in row]

    @settings(max_examples=60, deadline=None)
    @given(INTEGERS)
    def test_no_two_integer_rows_are_parallel(self, matrix: np.ndarray) -> None:
        rows = MergedRows.of(matrix).rows
        if not rows.any():
            assert not matrix.any()
            return
        units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        products = units @ units.T - np.eye(len(rows))
        assert products.max(initial=-1.0) < 1.0 - 1e-9

    @pytest.mark.parametrize("scale", [1.0, 2.0**-300, 2.0**300, 1 / 16])
    def test_sums_are_those_of_the_rows(self, scale: float) -> None:
        generator = np.random.default_rng(0)
        matrix, duals = scale * generator.integers(-3, 4, (200, 2)).astype(float), generator.standard_normal((200, 3))
        merged = MergedRows.of(matrix)
        assert len(merged.rows) < 40
        for unit in generator.standard_normal((20, 2)):
            expected = duals.T @ np.maximum(matrix @ unit, 0.0)
            found = merged.summed(duals).T @ np.maximum(merged.rows @ unit, 0.0)
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * scale)

    def test_rounding_covers_the_difference_to_exact_sums(self) -> None:
        generator = np.random.default_rng(1)
        matrix = np.repeat(np.array([[3.0, 1.0]]), 500, axis=0) * generator.integers(1, 50, (500, 1)).astype(float)
        duals = generator.standard_normal((500, 1)) * 10.0 ** generator.integers(-8, 8, (500, 1))
        merged = MergedRows.of(matrix)
        exact = sum(
            (Fraction(factor) * Fraction(dual) for factor, dual in zip(merged.factors, duals[:, 0], strict=True)), Fraction(0)
        )
        error = abs(Fraction(float(merged.summed(duals)[0, 0])) - exact) * 4  # the row has norm sqrt(10) < 4
        assert 0 < error <= Fraction(merged.rounding(duals, 0)) * 2
        assert merged.rounding(duals, 0) < 1e-10 * float(np.abs(matrix * duals).sum())

    def test_zero_and_non_finite_rows(self) -> None:
        zeros = MergedRows.of(np.zeros((3, 2)))
        assert not zeros.rows.any()
        assert not zeros.summed(np.ones((3, 1))).any()
        strange = np.array([[np.nan, 1.0], [np.inf, 0.0]])
        assert MergedRows.of(strange).rows is strange
