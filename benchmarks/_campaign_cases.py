"""Random small problems with known dual norms, made to be awkward: what the soundness campaign draws from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from tests.references.enumeration import exact_dual_norm
from tests.references.planar import exact_planar_dual_norm
from tests.references.sampled_deep_dual_norm import sampled_deep_dual_norm
from tests.references.sampled_dual_norm import sampled_dual_norm
from tests.references.vertex_enumeration import best_direction
from torch_strongdual.nn import BranchActivation, BranchSpec

FloatArray = NDArray[np.float64]
Generator = np.random.Generator

__all__ = ["FAMILIES", "Case"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A dual point with what is known of its dual norm.

    Args:
        spec: Architecture.
        inputs: Any floating dtype.
        duals: Float64.
        attained: A value that some unit branch has: no upper bound may be below it.
        is_exact: Whether ``attained`` is the dual norm itself, so that lower bounds can be checked, too.
        directions: First-layer directions of good branches, for a comparison in rational arithmetic.
        seconds: Time an oracle gets.
        rtol: Gap it is asked for.
    """

    spec: BranchSpec
    inputs: torch.Tensor
    duals: torch.Tensor
    attained: float
    is_exact: bool
    directions: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))
    seconds: float = 3.0
    rtol: float = 1e-2


def awkward(generator: Generator, n: int, m: int) -> FloatArray:
    """A matrix of one of the kinds that break things, at a size of about one."""
    kind = int(generator.integers(0, 8))
    matrix = generator.standard_normal((n, m))
    if kind == 1:
        matrix = generator.integers(-2, 3, (n, m)).astype(np.float64)
    elif kind == 2:
        matrix[generator.integers(0, n, n // 2 + 1)] = matrix[0]  # duplicates
    elif kind == 3:
        matrix[generator.integers(0, n, n // 3 + 1)] = 0.0
    elif kind == 4:
        matrix = matrix * np.array([1.0, 1e3, 1e-3, 1e3])[np.arange(m) % 4]
    elif kind == 5:
        matrix = matrix.astype(np.float32).astype(np.float64)
    elif kind == 6:
        matrix = np.outer(generator.standard_normal(n), np.ones(m)) + 1e-7 * matrix  # ill-conditioned
    elif kind == 7:
        matrix = matrix * 10.0 ** generator.uniform(-6, 6, (n, 1))
    return np.asarray(matrix)


def _unit(generator: Generator) -> float:
    """Units: one half of the time, else a power of two up to 1e150 either way."""
    return 1.0 if generator.random() < 0.5 else float(2.0 ** generator.integers(-498, 499))


def _bent(*widths: int, slope: float = 0.0) -> BranchSpec:
    return BranchSpec(widths=widths, activations=(BranchActivation(negative_slope=slope),) * (len(widths) - 2))


def _case(
    generator: Generator,
    spec: BranchSpec,
    rows: FloatArray,
    duals: FloatArray,
    attained: float,
    *,
    is_exact: bool,
    **rest: object,
) -> Case:
    """In units; as float32 where nothing is lost."""
    first, second = _unit(generator), _unit(generator)
    if not 1e-290 < first * second < 1e290:
        second = 1.0
    inputs = torch.from_numpy(rows * first)
    if first == 1.0 and bool((inputs == inputs.float()).all()):
        inputs = inputs.float()
    return Case(
        spec=spec, inputs=inputs, duals=torch.from_numpy(duals * second), attained=attained * first * second, is_exact=is_exact,
        **rest,  # type: ignore[arg-type]
    )  # fmt: skip


def planar(generator: Generator) -> Case:
    """Rank two, embedded or not, one to four outputs, any slope."""
    n, c = int(generator.integers(1, 25)), int(generator.integers(1, 5))
    slope = float(generator.choice([0.0, 0.0, 0.2, 0.9]))
    rows, duals = awkward(generator, n, 2), awkward(generator, n, c)
    truth = exact_planar_dual_norm(rows, duals, slope=slope)
    if generator.random() < 0.3:
        rows = np.hstack([rows, rows])  # rank two in four dimensions, exactly
        truth *= 2**0.5
    return _case(generator, _bent(rows.shape[1], 2, c, slope=slope), rows, duals, truth, is_exact=True)


def spatial(generator: Generator) -> Case:
    """Rank three or four, one output, complete enumeration."""
    d = int(generator.integers(3, 5))
    n = int(generator.integers(1, 9 if d == 3 else 7))
    slope = float(generator.choice([0.0, 0.0, 0.2]))
    rows, duals = awkward(generator, n, d), awkward(generator, n, 1)
    truth = exact_dual_norm(rows, duals[:, 0], slope=slope)
    return _case(generator, _bent(d, 2, 1, slope=slope), rows, duals, truth, is_exact=True)


def crowded(generator: Generator) -> Case:
    """Rank three with 30 to 100 rows, one to three outputs; dual points like residuals of a fit. All vertices."""
    n, c = int(generator.integers(30, 101)), int(generator.integers(1, 4))
    rows = generator.standard_normal((n, 3))
    duals = generator.standard_normal((n, c))
    basis = np.maximum(rows @ generator.standard_normal((3, 25)), 0.0)
    ridge = float(10.0 ** generator.uniform(-2, 1))
    duals -= basis @ np.linalg.solve(basis.T @ basis + ridge * np.eye(25), basis.T @ duals)  # many equal maxima
    truth, direction = best_direction(rows, duals)
    return _case(
        generator, _bent(3, 1, c), rows, duals, truth, is_exact=True, directions=direction[None],
        rtol=float(generator.choice([1e-2, 1e-3])), seconds=6.0,
    )  # fmt: skip


def tight(generator: Generator) -> Case:
    """Truth and bound coincide to the last digits: signed axes as rows, Pythagorean duals."""
    triples = np.array([[3.0, 4.0], [5.0, 12.0], [8.0, 15.0], [20.0, 21.0]])
    d = int(generator.integers(2, 6))
    rows = np.eye(d)[generator.permutation(d)] * generator.choice([-1.0, 1.0], (d, 1))
    duals = np.zeros((d, 1))
    duals[:2, 0] = triples[generator.integers(4)]
    duals[2:, 0] = -generator.integers(0, 2, d - 2)
    truth = float(np.linalg.norm(duals[:2]))
    point = (rows.T @ np.maximum(duals, 0.0))[:, 0]
    return _case(generator, _bent(d, 1, 1), rows, duals, truth, is_exact=True, directions=point[None], rtol=1e-9, seconds=1.0)


def wide(generator: Generator) -> Case:
    """Rank 5 to 12, one to three outputs, against sampled branches."""
    d, c = int(generator.integers(5, 13)), int(generator.integers(1, 4))
    n = int(generator.integers(2, 30))
    rows, duals = awkward(generator, n, d), awkward(generator, n, c)
    found = sampled_dual_norm(rows, duals, hidden_widths=[1], slopes=[0.0], num_samples=200, num_steps=150)
    return _case(generator, _bent(d, 1, c), rows, duals, found, is_exact=False, seconds=1.0)


def deep(generator: Generator) -> Case:
    """Three and four layers, against gradient ascent from many starts."""
    d, layers = int(generator.integers(1, 4)), int(generator.integers(2, 4))
    n = int(generator.integers(2, 12))
    slope = float(generator.choice([0.0, 0.0, 0.2]))
    rows, duals = awkward(generator, n, d), awkward(generator, n, 1)
    hidden = [*[4, 3][: layers - 1], 1]
    size = float(np.abs(rows).max() or 1.0)
    found = size * sampled_deep_dual_norm(
        rows / size, duals[:, 0], hidden_widths=hidden, slopes=[slope] * layers, num_steps=120
    )
    return _case(generator, _bent(d, *hidden, 1, slope=slope), rows, duals, found, is_exact=False, seconds=1.0)


def linear(generator: Generator) -> Case:
    """Spectral norms."""
    n, d, c = (int(generator.integers(1, 9)) for _ in range(3))
    rows, duals = awkward(generator, n, d), awkward(generator, n, c)
    truth = float(np.linalg.norm(rows.T @ duals, 2))
    return _case(generator, _bent(d, 3, c, slope=1.0), rows, duals, truth, is_exact=True, rtol=1e-9)


def gated(generator: Generator) -> Case:
    """The largest of several spectral norms."""
    n, d, c = (int(generator.integers(1, 8)) for _ in range(3))
    rows, duals = awkward(generator, n, d), awkward(generator, n, c)
    gates = generator.standard_normal((5, d))
    masks = rows @ gates.T >= 0
    truth = max(float(np.linalg.norm((rows * mask[:, None]).T @ duals, 2)) for mask in masks.T)
    activation = BranchActivation(negative_slope=1.0, gate_vectors=(torch.from_numpy(gates),))
    spec = BranchSpec(widths=(d, 2, c), activations=(activation,))
    return _case(generator, spec, rows, duals, truth, is_exact=True, rtol=1e-9)


FAMILIES: dict[str, Callable[[Generator], Case]] = {
    "planar": planar, "spatial": spatial, "crowded": crowded, "tight": tight, "wide": wide, "deep": deep, "linear": linear,
    "gated": gated,
}  # fmt: skip
