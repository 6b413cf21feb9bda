from __future__ import annotations

import numpy as np
import pytest

from torch_strongdual.certification.oracles.spectral_norm import SpectralNorms


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 5), (6, 4), (4, 6)])
def test_upper_is_above_the_norm_and_close(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    matrices = generator.standard_normal((7, *shape))
    matrices[0] = 0.0
    found = SpectralNorms.of(matrices)
    for k, matrix in enumerate(matrices):
        # a value of the quadratic form in extended precision is below the norm
        direction = found.right[k, 0].astype(np.longdouble)
        image = matrix.astype(np.longdouble) @ direction
        attained = np.sqrt(image @ image) / np.sqrt(direction @ direction)
        assert found.upper[k] >= attained
        assert found.upper[k] <= float(attained) * (1 + 1e-12) + 1e-140


def test_a_wrong_decomposition_cannot_lower_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = np.random.default_rng(1).standard_normal((3, 4, 3))
    truth = np.linalg.norm(matrices, ord=2, axis=(1, 2))
    left, singular, right = np.linalg.svd(matrices, full_matrices=False)
    for wrong in ((left, 0.5 * singular, right), (0.9 * left, singular, right), (left, singular, right[:, ::-1])):
        with monkeypatch.context() as patch:
            patch.setattr(np.linalg, "svd", lambda *_, wrong=wrong, **__: wrong)
            assert (SpectralNorms.of(matrices).upper >= truth * (1 - 1e-14)).all()
