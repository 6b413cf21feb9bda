"""The reference against another reference."""

from __future__ import annotations

import numpy as np
import pytest

from .enumeration import exact_dual_norm
from .vertex_enumeration import best_direction


@pytest.mark.parametrize("slope", [0.0, 0.2, -0.5])
def test_vertices_agree_with_all_patterns(slope: float) -> None:
    for seed in range(10):
        generator = np.random.default_rng(seed)
        rows, duals = generator.standard_normal((7, 3)), generator.standard_normal((7, 1))
        value, direction = best_direction(rows, duals, slope=slope)
        assert value == pytest.approx(exact_dual_norm(rows, duals[:, 0], slope=slope), rel=1e-12)
        hidden = rows @ direction
        assert np.linalg.norm(np.where(hidden > 0, hidden, slope * hidden) @ duals) == pytest.approx(value, rel=1e-12)


def test_several_outputs_agree_with_dense_sampling() -> None:
    generator = np.random.default_rng(0)
    rows, duals = generator.standard_normal((12, 3)), generator.standard_normal((12, 2))
    value, _ = best_direction(rows, duals)
    points = generator.standard_normal((400_000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    sampled = float(np.linalg.norm(np.maximum(points @ rows.T, 0.0) @ duals, axis=1).max())
    assert sampled <= value <= sampled * 1.001
