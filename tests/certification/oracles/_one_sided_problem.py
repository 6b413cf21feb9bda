"""Random problems of one output and one sign."""

from __future__ import annotations

import numpy as np

from torch_strongdual.certification.oracles.sphere_problem import SphereProblem

__all__ = ["one_sided_problem"]


def one_sided_problem(seed: int, *, rank: int, num_rows: int) -> SphereProblem:
    """Rows and duals are standard normal."""
    generator = np.random.default_rng(seed)
    return SphereProblem(
        rows=generator.standard_normal((num_rows, rank)),
        duals=generator.standard_normal((num_rows, 1)),
        linear=np.zeros((rank, 1)),
        one_sided=True,
    )
