"""Random problems and points for tests of oracles with one activation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles.sphere_problem import SphereProblem

__all__ = ["on_sphere", "one_sided_problem", "random_problem"]


def random_problem(
    seed: int, num_rows: int, rank: int, *, num_outputs: int = 1, linear: float = 0.0, uneven: bool = False
) -> SphereProblem:
    """Rows and duals are standard normal, the linear part is ``linear`` times that; one-sided if there is one output.

    With ``uneven``, rows are up to 25 times as long as others.
    """
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((num_rows, rank))
    return SphereProblem(
        rows=rows * generator.uniform(0.2, 5.0, (num_rows, 1)) if uneven else rows,
        duals=generator.standard_normal((num_rows, num_outputs)),
        linear=linear * generator.standard_normal((rank, num_outputs)),
        one_sided=num_outputs == 1,
    )


def one_sided_problem(seed: int, *, rank: int, num_rows: int) -> SphereProblem:
    """One output, no linear part."""
    return random_problem(seed, num_rows, rank)


def on_sphere(seed: int, number: int, rank: int) -> NDArray[np.float64]:
    """Random unit vectors, shape (number, rank)."""
    points = np.random.default_rng(seed).standard_normal((number, rank))
    scaled: NDArray[np.float64] = points / np.linalg.norm(points, axis=1, keepdims=True)
    return scaled
