"""Dual norms that are known in closed form or by complete enumeration, for the contract of the oracles."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from tests.references.enumeration import exact_dual_norm
from tests.references.planar import exact_planar_dual_norm
from torch_strongdual.nn.branch_spec import BranchActivation, BranchSpec

__all__ = [
    "OracleCase",
    "bent_spec",
    "gated_cases",
    "gated_spec",
    "linear_cases",
    "linear_spec",
    "orthonormal_cases",
    "planar_cases",
    "rank_one_cases",
    "rank_three_cases",
    "without_one_activation",
]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OracleCase:
    """A dual point and, where it is known, its dual norm."""

    name: str
    spec: BranchSpec
    inputs: Tensor  # (n, d)
    dual_point: Tensor  # (n, c)
    truth: float | None = None

    def but(self, **changes: object) -> OracleCase:
        """The same case with some fields replaced."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def matrix(self) -> Tensor:
        """What the first layer multiplies."""
        return self.spec.branch_inputs(self.inputs)

    def magnitude(self) -> float:
        """``||X||_F ||Lam||_F``: rounding in the references is a few 1e-16 of it."""
        return float(torch.linalg.norm(self.matrix()) * torch.linalg.norm(self.dual_point))


def bent_spec(*widths: int, slope: float = 0.0, input_bias: bool = False) -> BranchSpec:
    """Branches with the same (leaky) ReLU behind every hidden layer."""
    activations = (BranchActivation(negative_slope=slope),) * (len(widths) - 2)
    return BranchSpec(widths=widths, activations=activations, input_bias=input_bias)


def linear_spec(*widths: int, input_bias: bool = False) -> BranchSpec:
    """Linear branches."""
    return bent_spec(*widths, slope=1.0, input_bias=input_bias)


def gated_spec(*widths: int, gates: tuple[Tensor, ...]) -> BranchSpec:
    """Branches that are linear but for gates behind the first ``len(gates)`` hidden layers."""
    collected = [(g,) for g in gates] + [()] * (len(widths) - 2 - len(gates))
    activations = tuple(BranchActivation(negative_slope=1.0, gate_vectors=g) for g in collected)
    return BranchSpec(widths=widths, activations=activations)


def without_one_activation() -> list[BranchSpec]:
    """Linear, deep and gated branches: none for oracles of one activation."""
    return [linear_spec(3, 2, 1), bent_spec(3, 2, 2, 1), gated_spec(3, 2, 1, gates=(torch.ones(1, 3),))]


def _normal(generator: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(generator.standard_normal(shape))


def rank_one_cases() -> list[OracleCase]:
    """Rows t_i v': two rays, ``||v|| max(||Lam'(t)_+||, ||Lam'(-t)_+||)``."""
    generator = np.random.default_rng(0)
    cases = []
    for num_outputs in (1, 3):
        t, v, duals = _normal(generator, 9), _normal(generator, 4), _normal(generator, 9, num_outputs)
        sides = [torch.linalg.norm(duals.T @ (sign * t).clamp(min=0)) for sign in (1, -1)]
        truth = float(torch.linalg.norm(v) * max(sides))
        cases.append(
            OracleCase(
                name=f"rank one, {num_outputs} outputs",
                spec=bent_spec(4, 3, num_outputs),
                inputs=torch.outer(t, v),
                dual_point=duals,
                truth=truth,
            )
        )
    return cases


def planar_cases() -> list[OracleCase]:
    """Rank two, by an arc-by-arc sweep: plain, leaky, a bias on the line, embedded in five dimensions."""
    generator = np.random.default_rng(1)
    cases = []
    for num_outputs in (1, 2, 4):
        rows, duals = generator.standard_normal((12, 2)), generator.standard_normal((12, num_outputs))
        slope = 0.2 if num_outputs == 2 else 0.0
        frame = np.linalg.qr(generator.standard_normal((5, 5)))[0][:, :2]
        cases.append(
            OracleCase(
                name=f"planar, {num_outputs} outputs, slope {slope}",
                spec=bent_spec(5, 4, num_outputs, slope=slope),
                inputs=torch.from_numpy(rows @ frame.T),
                dual_point=torch.from_numpy(duals),
                truth=exact_planar_dual_norm(rows, duals, slope=slope),
            )
        )
    line, duals = generator.standard_normal((10, 1)), generator.standard_normal((10, 1))
    cases.append(
        OracleCase(
            name="line with bias",
            spec=bent_spec(1, 2, 1, input_bias=True),
            inputs=torch.from_numpy(line),
            dual_point=torch.from_numpy(duals),
            truth=exact_planar_dual_norm(np.hstack([line, np.ones_like(line)]), duals),
        )
    )
    return cases


def rank_three_cases() -> list[OracleCase]:
    """Seven rows in three dimensions, one output, by complete enumeration: ReLU and leaky ReLU."""
    generator = np.random.default_rng(2)
    cases = []
    for slope in (0.0, 0.1):
        rows, duals = generator.standard_normal((7, 3)), generator.standard_normal(7)
        cases.append(
            OracleCase(
                name=f"rank three, slope {slope}",
                spec=bent_spec(3, 2, 1, slope=slope),
                inputs=torch.from_numpy(rows),
                dual_point=torch.from_numpy(duals[:, None]),
                truth=exact_dual_norm(rows, duals, slope=slope),
            )
        )
    return cases


def orthonormal_cases(num_rows: int = 4, in_features: int = 6) -> list[OracleCase]:
    """Orthonormal rows, one output: ``max(||lam_+||, ||lam_-||)``."""
    generator = np.random.default_rng(3)
    rows = np.linalg.qr(generator.standard_normal((in_features, in_features)))[0][:num_rows]
    duals = generator.standard_normal(num_rows)
    truth = max(float(np.linalg.norm(np.maximum(duals, 0))), float(np.linalg.norm(np.minimum(duals, 0))))
    return [
        OracleCase(
            name="orthonormal rows",
            spec=bent_spec(in_features, 3, 1),
            inputs=torch.from_numpy(rows),
            dual_point=torch.from_numpy(duals[:, None]),
            truth=truth,
        )
    ]


def linear_cases() -> list[OracleCase]:
    """Spectral norm of ``X'Lam``: one and more outputs, two and four layers, a bias, fewer samples than features."""
    generator = np.random.default_rng(4)
    specs = [linear_spec(4, 3, 1), linear_spec(4, 3, 2, 5, 3), linear_spec(4, 2, 3, input_bias=True), linear_spec(20, 3, 6)]
    cases = []
    for spec in specs:
        inputs, duals = _normal(generator, 8, spec.widths[0]), _normal(generator, 8, spec.out_features)
        matrix = spec.branch_inputs(inputs).numpy()
        truth = float(np.linalg.svd(matrix.T @ duals.numpy(), compute_uv=False)[0])
        cases.append(OracleCase(name=str(spec), spec=spec, inputs=inputs, dual_point=duals, truth=truth))
    return cases


def gated_cases() -> list[OracleCase]:
    """The largest spectral norm of ``X' D_k Lam`` over the gates: one layer of gates, two of them, c = 1 and 3."""
    generator = np.random.default_rng(5)
    cases = []
    for widths, layers in (((3, 2, 1), 1), ((3, 4, 2, 3), 2), ((3, 4, 2, 3), 1)):
        gates = tuple(_normal(generator, 6, 3) for _ in range(layers))
        inputs, duals = _normal(generator, 10, 3), _normal(generator, 10, widths[-1])
        norms = []
        for branch in range(6):
            mask = np.ones(10)
            for gate in gates:
                mask = mask * (inputs.numpy() @ gate[branch].numpy() >= 0)
            norms.append(np.linalg.svd((inputs.numpy() * mask[:, None]).T @ duals.numpy(), compute_uv=False)[0])
        spec = gated_spec(*widths, gates=gates)
        cases.append(
            OracleCase(name=f"{layers} gated of {spec}", spec=spec, inputs=inputs, dual_point=duals, truth=float(max(norms)))
        )
    return cases
