"""Compilation of the box searches, once a machine, ahead of any deadline."""

from __future__ import annotations

import logging

import numpy as np

from torch_strongdual.certification.oracles._boxes.tree import BoxTree
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem

__all__ = ["compile_kernels"]

_logger = logging.getLogger(__name__)


def compile_kernels(num_outputs: int) -> None:
    """Compile the search for this number of outputs, or load it from Numba's cache; says so where that takes a while.

    Not to be left to a deadline: the first time on a machine it is some ten to thirty seconds.
    """
    from torch_strongdual._compiled_kernel import when_compiled  # imports Numba

    one_sided = num_outputs == 1
    ones = np.ones((1, 1 if one_sided else 2))
    problem = SphereProblem(rows=ones[:, :1], duals=ones, linear=np.zeros_like(ones), one_sided=one_sided)
    with when_compiled(_announce):
        BoxTree(problem).advance(2.0, 4)


def _announce() -> None:
    _logger.warning("Compiling the box branch and bound for this machine, once: 10 to 30 seconds.")
