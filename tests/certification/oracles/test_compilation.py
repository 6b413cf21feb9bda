"""Compilation of the box searches: said where it takes place, silent where it does not."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from numba.core import event

from torch_strongdual._compiled_kernel import when_compiled
from torch_strongdual.certification.oracles._boxes import compilation
from torch_strongdual.certification.oracles._boxes._scalar_kernel import advance_scalar
from torch_strongdual.certification.oracles._boxes.tree import BoxTree
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem


def test_says_once_that_it_compiles(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def compile_two(tree: BoxTree, bound: float, max_cells: int) -> int:
        for _ in range(2):
            with event.trigger_event("numba:compile", data={}):
                pass
        return 1

    monkeypatch.setattr(BoxTree, "advance", compile_two)
    with caplog.at_level(logging.WARNING):
        compilation.compile_kernels(1)
    assert [record.name for record in caplog.records] == [compilation.__name__]
    assert "once" in caplog.text


@pytest.mark.parametrize("num_outputs", [1, 2, 5])
def test_silent_when_all_is_compiled(num_outputs: int, caplog: pytest.LogCaptureFixture) -> None:
    compilation.compile_kernels(num_outputs)
    caplog.clear()
    compilation.compile_kernels(num_outputs)
    assert not caplog.records


def test_kernels_compiled_for_a_small_problem_serve_all(caplog: pytest.LogCaptureFixture) -> None:
    """Another layout or type of an array would be compiled inside the deadline."""
    generator = np.random.default_rng(0)
    compiled: list[int] = []
    for num_outputs in (1, 3):
        compilation.compile_kernels(num_outputs)

        problem = SphereProblem(
            rows=np.asfortranarray(generator.standard_normal((20, 5))),
            duals=np.asfortranarray(generator.standard_normal((20, num_outputs))),
            linear=np.asfortranarray(generator.standard_normal((5, num_outputs))),
            one_sided=num_outputs == 1,
        )
        with when_compiled(lambda: compiled.append(1)):
            BoxTree(problem).advance(2.0, 100)
    assert not compiled


def test_references_are_not_counted() -> None:
    """With a version of Numba that lacks the option kernels are slower, and nothing else would show it."""
    assert advance_scalar.targetoptions["_nrt"] is False
