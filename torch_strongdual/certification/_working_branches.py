"""The network while it is optimised: one last hidden unit a branch, float64, with the operations optimisation needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from torch_strongdual.certification.dual_norm_bound import Witness
from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.errors import UnsupportedModelError
from torch_strongdual.functional import product_penalty, rebalanced
from torch_strongdual.nn import BranchSpec, ParallelNet, ParallelWeights

__all__ = ["WorkingBranches"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WorkingBranches:
    """Branches with a single last hidden unit; those that have more are split, which never raises the product penalty.

    (For balanced halves this is the inequality of Cauchy and Schwarz; the other hidden layers are copied.)

    Args:
        weights: Branch weight list, the last hidden width being one. Possibly no branches at all.
        gates: Number of the gates of each branch in the problem's spec, int64; ``None`` without gates.
        output_bias: Shape ``(out_features,)``, or ``None``.
    """

    weights: tuple[Tensor, ...]
    gates: Tensor | None
    output_bias: Tensor | None

    @classmethod
    def of_network(cls, weights: ParallelWeights) -> WorkingBranches:
        """Split the branches of a network whose gates are numbered as those of the problem's spec."""
        check_one_location(weights.spec)
        units = weights.spec.hidden_widths[-1]
        number = weights.num_branches
        lower = [weight.repeat_interleave(units, dim=0) for weight in weights.weights[:-2]]
        inner = weights.weights[-2].reshape(number * units, 1, -1)
        last = weights.weights[-1].transpose(1, 2).reshape(number * units, -1, 1)
        gates = torch.arange(number).repeat_interleave(units) if weights.spec.is_gated else None
        return cls(weights=(*lower, inner, last), gates=gates, output_bias=weights.output_bias).alive()

    @classmethod
    def of_witnesses(cls, problem: TrainingProblem, witnesses: Sequence[Witness]) -> WorkingBranches:
        """The last hidden units of witnesses as branches of unit norm: at least one unit violates as much as its witness."""
        spec = problem.spec
        check_one_location(spec)
        widths = (spec.in_features, *spec.hidden_widths[:-1], 1, spec.out_features)
        shapes = [(fan_out, fan_in) for fan_in, fan_out in pairwise(widths)]
        units = [(unit, witness.gate_index or 0) for witness in witnesses for unit in _units(witness)]
        weights = tuple(
            torch.stack([_padded(unit[layer], shape) for unit, _ in units]) if units else _no_branches(shape)
            for layer, shape in enumerate(shapes)
        )
        gates = torch.tensor([gate for _, gate in units], dtype=torch.int64) if spec.is_gated else None
        bias = torch.zeros(spec.out_features, dtype=torch.float64) if spec.output_bias else None
        return cls(weights=weights, gates=gates, output_bias=bias)

    @property
    def number(self) -> int:
        """Number of branches."""
        return self.weights[0].shape[0]

    def magnitudes(self) -> Tensor:  # shape: (number,)
        """Product of the norms of each branch's layers."""
        return product_penalty(self.weights)

    def features(self, problem: TrainingProblem) -> Tensor:  # shape: (num_samples, number)
        """Outputs of the last hidden units."""
        spec = problem.spec
        masks = spec.gate_masks(problem.inputs)
        own = None if masks is None or self.gates is None else masks[self.gates]
        return spec.features(problem.inputs, self.weights[:-1], own)[:, :, 0].T

    def outputs(self, problem: TrainingProblem) -> Tensor:  # shape: (num_samples, out_features)
        """Outputs of the network."""
        total = self.features(problem) @ self.weights[-1][:, :, 0]
        return total if self.output_bias is None else total + self.output_bias

    def objective(self, problem: TrainingProblem) -> float:
        """Product-form objective, plain float64 evaluation."""
        return float(problem.loss.value(self.outputs(problem))) + problem.path_decay * float(self.magnitudes().sum())

    def scaled(self, factors: Tensor) -> WorkingBranches:  # factors: (number,)
        """Multiply each branch by a number."""
        return dataclasses.replace(self, weights=(*self.weights[:-1], self.weights[-1] * factors[:, None, None]))

    def with_coefficients(self, coefficients: Tensor, output_bias: Tensor | None) -> WorkingBranches:
        """The same unit features with other coefficients, shape ``(number, out_features)``."""
        hidden = self.unit_hidden()
        return WorkingBranches(weights=(*hidden, coefficients[:, :, None]), gates=self.gates, output_bias=output_bias)

    def unit_hidden(self) -> list[Tensor]:
        """Hidden layers, each of norm one (or zero)."""
        norms = [torch.linalg.matrix_norm(weight)[:, None, None] for weight in self.weights[:-1]]
        pairs = zip(self.weights[:-1], norms, strict=True)
        return [weight / torch.where(norm > 0, norm, 1.0) for weight, norm in pairs]

    def with_bias(self, output_bias: Tensor | None) -> WorkingBranches:
        """The same branches with another output bias."""
        return dataclasses.replace(self, output_bias=output_bias)

    def joined(self, other: WorkingBranches) -> WorkingBranches:
        """Both sets, with this one's bias."""
        weights = tuple(torch.cat(pair) for pair in zip(self.weights, other.weights, strict=True))
        gates = None if self.gates is None or other.gates is None else torch.cat([self.gates, other.gates])
        return WorkingBranches(weights=weights, gates=gates, output_bias=self.output_bias)

    def kept(self, which: Tensor | slice) -> WorkingBranches:
        """Those that an index, mask or slice picks."""
        gates = None if self.gates is None else self.gates[which]
        return WorkingBranches(
            weights=tuple(weight[which] for weight in self.weights), gates=gates, output_bias=self.output_bias
        )

    def alive(self) -> WorkingBranches:
        """Without the branches that are zero."""
        return self.kept(self.magnitudes() > 0.0)

    def balanced(self) -> WorkingBranches:
        """All layers of a branch of the same norm."""
        return dataclasses.replace(self, weights=tuple(rebalanced(self.weights))) if self.number else self

    def to_weights(self, problem: TrainingProblem) -> ParallelWeights:
        """What certification takes; no branches become one zero branch."""
        full = self if self.number else self._one_zero_branch()
        spec = _narrowed(problem.spec, full.gates)
        hidden = (None,) * (spec.num_layers - 1)
        return ParallelWeights(weights=full.weights, hidden_biases=hidden, output_bias=full.output_bias, spec=spec)

    def to_net(self, template: ParallelNet) -> ParallelNet:
        """Give these branches to ``template``, in place of its own, in its dtype; widths are filled up with zeros."""
        full = (self if self.number else self._one_zero_branch()).balanced()
        padded = full.padded_to(template)
        gates = [] if full.gates is None else [vectors[full.gates.to(vectors.device)] for vectors in template.gate_vectors()]
        with torch.no_grad():
            for parameter in template.path_param_groups(1.0)[0]["params"]:
                parameter.zero_()
            if template.output_bias is not None and full.output_bias is not None:
                template.output_bias.copy_(full.output_bias)
        template.add_branches_(padded, gate_vectors=gates)
        template.prune_(keep_gates=True)  # they say which networks the certificate speaks of
        return template

    def padded_to(self, net: ParallelNet) -> list[Tensor]:
        """Branch weight list in the widths of ``net``, filled up with zeros."""
        padded = []
        for weight, old in zip(self.weights, net.branch_weights(), strict=True):
            wide = weight.new_zeros(weight.shape[0], *old.shape[1:])
            wide[:, : weight.shape[1], : weight.shape[2]] = weight
            padded.append(wide)
        return padded

    def _one_zero_branch(self) -> WorkingBranches:
        weights = tuple(weight.new_zeros(1, *weight.shape[1:]) for weight in self.weights)
        gates = None if self.gates is None else self.gates.new_zeros(1)
        return WorkingBranches(weights=weights, gates=gates, output_bias=self.output_bias)


def check_one_location(spec: BranchSpec) -> None:
    """Refuse branches whose last hidden units reach the last layer more than once.

    Raises:
        UnsupportedModelError: For convolutional branches without global pooling.
    """
    if spec.patch_map is not None and spec.patch_map.num_locations > 1:
        raise UnsupportedModelError(
            f"Branches {spec} reach their last layer at {spec.patch_map.num_locations} locations: they can be certified, but "
            "not optimised or grown here. Expected global average pooling, nn.AdaptiveAvgPool2d(1)."
        )


def _narrowed(spec: BranchSpec, gates: Tensor | None) -> BranchSpec:
    """The spec of single-unit branches that have these gates."""
    activations = spec.activations
    if gates is not None:
        activations = tuple(
            dataclasses.replace(activation, gate_vectors=tuple(vectors[gates] for vectors in activation.gate_vectors))
            for activation in activations
        )
    return dataclasses.replace(spec, widths=(*spec.widths[:-2], 1, spec.widths[-1]), activations=activations)


def _units(witness: Witness) -> list[tuple[Tensor, ...]]:
    """Layers of each live last hidden unit of a witness, of norm one."""
    *lower, inner, last = witness.weights
    sizes = torch.linalg.vector_norm(inner, dim=1) * torch.linalg.vector_norm(last, dim=0)
    return [
        (*lower, inner[j : j + 1] / inner[j].norm(), last[:, j : j + 1] / last[:, j].norm())
        for j in torch.nonzero(sizes > 1e-6)[:, 0].tolist()
    ]


def _padded(layer: Tensor, shape: tuple[int, int]) -> Tensor:
    padded = layer.new_zeros(shape)  # a witness may be narrower than the spec
    padded[: layer.shape[0], : layer.shape[1]] = layer
    return padded


def _no_branches(shape: tuple[int, int]) -> Tensor:
    return torch.zeros(0, *shape, dtype=torch.float64)
