"""``lower <= kappa <= upper`` on thousands of small problems with exactly known dual norm, for every oracle that proves one.

A new oracle is one line in ``TWO_LAYER_ORACLES``.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.contracts.oracle_cases import OracleCase, bent_spec, gated_spec, linear_spec
from tests.contracts.oracle_contract import check_witnesses
from tests.references.enumeration import exact_dual_norm
from tests.references.planar import exact_planar_dual_norm
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.dual_norm_bound import DualNormBound
from torch_strongdual.certification.oracles.abstract_oracle import AbstractDualNormOracle, BoundRequest
from torch_strongdual.certification.oracles.angular_sweep_oracle import AngularSweepOracle
from torch_strongdual.certification.oracles.box_branch_and_bound import BoxBranchAndBound
from torch_strongdual.certification.oracles.gated_oracle import GatedOracle
from torch_strongdual.certification.oracles.linear_oracle import LinearOracle
from torch_strongdual.certification.oracles.quadratic_relaxation import QuadraticRelaxation
from torch_strongdual.certification.oracles.rank_one_oracle import RankOneOracle

FloatArray = NDArray[np.float64]
Generator = np.random.Generator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prover:
    """An oracle and what it promises.

    Args:
        make: Makes one.
        max_rank: Largest rank of the data it bounds.
        rtol: Gap asked for.
        median_ratio: What ``upper / lower`` is at most in the median.
        share: Part of the number of problems it gets, by its speed.
        only_square: Whether ``median_ratio`` is meant for ``n = rank`` only.
    """

    make: Callable[[], AbstractDualNormOracle]
    max_rank: int
    rtol: float
    median_ratio: float
    share: float
    only_square: bool = False


TWO_LAYER_ORACLES = {
    "rank_one": Prover(make=RankOneOracle, max_rank=1, rtol=1e-9, median_ratio=1 + 1e-9, share=1.0),
    "angular_sweep": Prover(make=AngularSweepOracle, max_rank=2, rtol=1e-9, median_ratio=1 + 1e-9, share=1.0),
    "boxes": Prover(make=BoxBranchAndBound, max_rank=3, rtol=5e-3, median_ratio=1.01, share=0.03),
    "quadratic": Prover(make=QuadraticRelaxation, max_rank=3, rtol=1e-2, median_ratio=1.2, share=0.02, only_square=True),
}

NUM_PROBLEMS = 400


def line_problem(generator: Generator, *, degenerate: bool) -> OracleCase:
    """Rank one: rows t_i v'."""
    n, d, c = (int(generator.integers(1, high)) for high in (12, 5, 5))
    t, v, duals = (
        _numbers(generator, n, 1, degenerate),
        generator.standard_normal((1, d)),
        _numbers(generator, n, c, degenerate),
    )
    slope = float(generator.choice([0.0, 0.0, 0.2, -0.5]))
    bent = [np.linalg.norm(duals.T @ np.where(s * t > 0, s * t, slope * s * t)) for s in (1.0, -1.0)]
    truth = float(max(bent) * np.linalg.norm(v))
    return _case("line", bent_spec(d, 2, c, slope=slope), t @ v, duals, truth)


def planar_problem(generator: Generator, *, degenerate: bool) -> OracleCase:
    """Rank two, one to four outputs; columns of unequal size now and then."""
    n, c = int(generator.integers(1, 13)), int(generator.integers(1, 5))
    rows, duals = _numbers(generator, n, 2, degenerate), _numbers(generator, n, c, degenerate)
    if generator.random() < 0.2:
        rows = rows * np.array([1.0, 10.0 ** generator.integers(-4, 5)])
    slope = float(generator.choice([0.0, 0.0, 0.2, -0.5]))
    truth = exact_planar_dual_norm(rows, duals, slope=slope)
    return _case("planar", bent_spec(2, 2, c, slope=slope), rows, duals, truth)


def solid_problem(generator: Generator, *, degenerate: bool) -> OracleCase:
    """Rank three, one output, by complete enumeration."""
    n = int(generator.integers(1, 7))
    rows, duals = _numbers(generator, n, 3, degenerate), _numbers(generator, n, 1, degenerate)
    slope = float(generator.choice([0.0, 0.0, 0.2]))
    truth = exact_dual_norm(rows, duals[:, 0], slope=slope)
    return _case("solid", bent_spec(3, 2, 1, slope=slope), rows, duals, truth)


def square_problem(generator: Generator, *, degenerate: bool) -> OracleCase:
    """As many rows as dimensions, one output, by complete enumeration."""
    rows, duals = _numbers(generator, 3, 3, degenerate), _numbers(generator, 3, 1, degenerate)
    return _case("square", bent_spec(3, 2, 1), rows, duals, exact_dual_norm(rows, duals[:, 0]))


FAMILIES = {
    "line": (line_problem, 1),
    "planar": (planar_problem, 2),
    "solid": (solid_problem, 3),
    "square": (square_problem, 3),
}
PAIRS = [(o, f) for o, prover in TWO_LAYER_ORACLES.items() for f, (_, rank) in FAMILIES.items() if rank <= prover.max_rank]


def _numbers(generator: Generator, n: int, c: int, degenerate: bool) -> FloatArray:
    """Gaussian, or small whole numbers: zero, repeated, opposite and parallel rows."""
    if degenerate:
        return generator.integers(-2, 3, (n, c)).astype(np.float64)
    return generator.standard_normal((n, c))


def _case(name: str, spec: object, rows: FloatArray, duals: FloatArray, truth: float) -> OracleCase:
    case = OracleCase(name=name, spec=spec, inputs=torch.from_numpy(rows), dual_point=torch.from_numpy(duals))  # type: ignore[arg-type]
    return case.but(truth=truth)


def bound(oracle: AbstractDualNormOracle, case: OracleCase, rtol: float, target: float | None = None) -> DualNormBound:
    state = oracle.init(case.spec, case.inputs)
    return oracle.bound(state, case.dual_point, BoundRequest(rtol=rtol, target=target, deadline=Deadline(20.0)))


def check(case: OracleCase, found: DualNormBound) -> None:
    """Both inequalities, up to what the truth itself may be wrong by: a few 1e-16 of ``||X|| ||Lam||``."""
    assert case.truth is not None
    error = 1e-14 * case.magnitude()
    what = (case.name, case.inputs.tolist(), case.dual_point.tolist(), case.spec.negative_slopes)
    assert found.upper >= case.truth - error, what
    assert found.lower <= case.truth + error, what
    assert found.lower <= found.upper, what


def check_many(prover: Prover, family: str, number: int, seed: int) -> Iterator[float]:
    """Check ``number`` seeded problems; yields the ratios of those in general position."""
    make = FAMILIES[family][0]
    oracle = prover.make()
    for index in range(number):
        generator = np.random.default_rng([seed, index])
        degenerate = index % 3 == 2
        case = make(generator, degenerate=degenerate)
        found = bound(oracle, case, prover.rtol)
        check(case, found)
        if index % 10 == 0:
            check_witnesses(case, found)
            assert case.truth is not None
            check(case, bound(oracle, case, prover.rtol, target=case.truth * (1 - 1e-7)))
        if not degenerate and found.lower > 0:
            yield found.ratio


@pytest.mark.parametrize(("name", "family"), PAIRS)
def test_bounds_enclose_the_truth_and_say_something(name: str, family: str) -> None:
    prover = TWO_LAYER_ORACLES[name]
    ratios = list(check_many(prover, family, max(10, int(prover.share * NUM_PROBLEMS)), seed=1))
    print(f"{name} on {family}: median upper / lower {statistics.median(ratios):.12g}, largest {max(ratios):.6g}")
    if not prover.only_square or family == "square":
        assert statistics.median(ratios) <= prover.median_ratio


@pytest.mark.slow
@pytest.mark.parametrize(("name", "family"), PAIRS)
def test_bounds_enclose_the_truth_on_many_more(name: str, family: str) -> None:
    prover = TWO_LAYER_ORACLES[name]
    cost = 0.1 if family in ("solid", "square") else 1.0
    assert list(check_many(prover, family, max(60, int(prover.share * cost * 20_000)), seed=2))


WHOLE = st.integers(-3, 3).map(float)
SIZES = st.sampled_from([1.0, 1.0, 1e-3, 1e3, 1e-8])


@st.composite
def planar_cases(draw: st.DrawFn) -> OracleCase:
    """Planar problems on small whole numbers times sizes: shrinks to the simplest failure."""
    n, c = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    entries = draw(st.lists(WHOLE, min_size=n * (2 + c), max_size=n * (2 + c)))
    numbers = np.array(entries).reshape(n, 2 + c)
    sizes = np.array(draw(st.lists(SIZES, min_size=n, max_size=n)))
    rows, duals = numbers[:, :2] * sizes[:, None], numbers[:, 2:]
    slope = draw(st.sampled_from([0.0, 0.25, 0.999, 2.0]))
    truth = exact_planar_dual_norm(rows, duals, slope=slope)
    return _case("planar", bent_spec(2, 1, c, slope=slope), rows, duals, truth)


@pytest.mark.parametrize("name", [name for name, prover in TWO_LAYER_ORACLES.items() if prover.max_rank >= 2])
def test_bounds_enclose_the_truth_of_any_small_problem(name: str) -> None:
    prover = TWO_LAYER_ORACLES[name]
    oracle = prover.make()

    @settings(max_examples=max(10, int(200 * prover.share)))
    @given(planar_cases())
    def holds(case: OracleCase) -> None:
        check(case, bound(oracle, case, prover.rtol))

    holds()


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 6), st.integers(1, 4), st.floats(-6, 6), st.booleans())
def test_linear_bounds_enclose_the_spectral_norm(seed: int, n: int, d: int, c: int, grade: float, bias: bool) -> None:
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((n, d)) * np.logspace(0, grade, d)
    duals = generator.standard_normal((n, c))
    matrix = np.hstack([inputs, np.ones((n, 1))]) if bias else inputs
    truth = float(np.linalg.svd(matrix.T @ duals, compute_uv=False)[0])
    case = _case("linear", linear_spec(d, 2, 3, c, input_bias=bias), inputs, duals, truth)
    found = bound(LinearOracle(), case, 1e-9)
    check(case, found)
    check_witnesses(case, found)
    assert found.upper <= found.lower * (1 + 1e-9) + 1e-13 * case.magnitude()


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 8), st.integers(1, 2))
def test_gated_bounds_enclose_the_largest_spectral_norm(seed: int, n: int, d: int, c: int, branches: int, layers: int) -> None:
    generator = np.random.default_rng(seed)
    inputs, duals = generator.standard_normal((n, d)), generator.standard_normal((n, c))
    gates = [generator.standard_normal((branches, d)) for _ in range(layers)]
    truth = 0.0
    for branch in range(branches):
        open_rows = np.all([inputs @ gate[branch] >= 0 for gate in gates], axis=0)
        product = inputs[open_rows].T @ duals[open_rows]
        truth = max(truth, float(np.linalg.svd(product, compute_uv=False)[0]))
    spec = gated_spec(d, *(3,) * layers, c, gates=tuple(torch.from_numpy(g) for g in gates))
    case = _case("gated", spec, inputs, duals, truth)
    found = bound(GatedOracle(), case, 1e-9)
    check(case, found)
    check_witnesses(case, found)
    assert found.upper <= found.lower * (1 + 1e-9) + 1e-13 * case.magnitude()


@pytest.mark.parametrize("name", TWO_LAYER_ORACLES)
def test_a_check_that_halves_the_bound_would_fail(name: str) -> None:
    """The comparison itself can fail: half of any true bound is refused."""
    prover = TWO_LAYER_ORACLES[name]
    case = line_problem(np.random.default_rng(0), degenerate=False)
    found = bound(prover.make(), case, prover.rtol)
    assert math.isfinite(found.upper)
    with pytest.raises(AssertionError):
        check(case, dataclasses.replace(found, upper=0.5 * found.upper, lower=0.0))
