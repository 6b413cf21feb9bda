"""The training problem a certificate speaks of: data, loss, path decay, architecture; primal values and dual bounds of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torch_strongdual._checks import check_in, check_ndim, check_positive_finite
from torch_strongdual.certification._own_defaults import with_own_defaults
from torch_strongdual.certification.certificate import CertificateScope, DualBound
from torch_strongdual.errors import InvalidInputError, ShapeError, UnsupportedModelError
from torch_strongdual.functional import path_penalty
from torch_strongdual.functional._row_blocks import row_blocks
from torch_strongdual.losses import AbstractDualLoss, conjugate_loss
from torch_strongdual.nn import BranchSpec, ParallelWeights

__all__ = ["CERTIFIED_PENALTIES", "PrimalValue", "TrainingProblem"]

#: The power form has the same minimum as the product form and is never below it, so it shares the dual of the product form.
CERTIFIED_PENALTIES = ("product", "power", "l2_path")

_UNIT = 2.0**-53


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrimalValue:
    """The training objective of a network.

    Args:
        value: Rounded up; NaN or infinite if the outputs are.
        outputs: Float64 outputs of the network, shape ``(num_samples, out_features)``.
        penalty: Penalty summed over branches, without ``path_decay``.
    """

    value: float
    outputs: Tensor
    penalty: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingProblem:
    r"""``loss(f(X), Y) + path_decay * sum_k penalty(branch k)``, minimised over parallel networks with any number of branches.

    Fixed for a whole training run: a lower bound on its optimum, once found, holds for all weights. Everything is computed in
    float64 on the CPU, the inputs converted block by block: those given are kept as they are, not copied, and must not change.

    Args:
        inputs: Raw inputs as the model takes them, ``(num_samples, ...)``.
        loss: The loss, bound to the targets.
        path_decay: Strength of the penalty, above zero.
        penalty: One of :data:`CERTIFIED_PENALTIES`.
        spec: Architecture of a branch.
    """

    inputs: Tensor
    loss: AbstractDualLoss
    path_decay: float
    penalty: str
    spec: BranchSpec

    @classmethod
    def from_model(
        cls, model: nn.Module, inputs: Tensor, targets: Tensor, *, loss: nn.Module, path_decay: float, penalty: str = "product"
    ) -> TrainingProblem:
        """Build the problem that ``model`` is trained on: :meth:`from_spec` of its architecture.

        Raises:
            UnsupportedModelError: If the model is no parallel network, or has hidden biases.
            UnsupportedLossError: If the loss, or an option of it, has no conjugate here.
            InvalidInputError: If data are empty, labels outside the classes, or ``path_decay`` is not above zero.
            ShapeError: If inputs, targets and model do not fit together.
        """
        spec = ParallelWeights.from_module(model).spec
        return cls.from_spec(spec, inputs, targets, loss=loss, path_decay=path_decay, penalty=penalty)

    @classmethod
    @with_own_defaults
    def from_spec(
        cls, spec: BranchSpec, inputs: Tensor, targets: Tensor, *, loss: nn.Module, path_decay: float, penalty: str = "product"
    ) -> TrainingProblem:
        """Build the problem that networks with branches of architecture ``spec`` are trained on.

        Raises:
            UnsupportedModelError: If the branches have hidden biases.
            UnsupportedLossError: If the loss, or an option of it, has no conjugate here.
            InvalidInputError: If data are empty, labels outside the classes, or ``path_decay`` is not above zero.
            ShapeError: If inputs, targets and architecture do not fit together.
        """
        check_positive_finite("path_decay", path_decay)
        check_in("penalty", penalty, CERTIFIED_PENALTIES)
        if spec.hidden_bias_layers:
            layers = ", ".join(str(layer) for layer in spec.hidden_bias_layers)
            raise UnsupportedModelError(
                f"Hidden linear layer(s) {layers} (counted from 0) of {spec} have a bias, which breaks the homogeneity that "
                "zero duality gap needs: such a net trains but cannot be certified. Build these layers with bias=False."
            )
        if spec.patch_map is not None and penalty == "l2_path":
            raise UnsupportedModelError(
                f"The 'l2_path' penalty sums over paths of linear layers, and {spec} has a convolution. Expected 'product' or "
                "'power'."
            )
        if inputs.ndim < 2:
            raise ShapeError(
                f"`inputs` has shape {tuple(inputs.shape)}; expected one row a sample, (num_samples, in_features). "
                "`inputs[:, None]` makes a column of them, `inputs[None]` one sample."
            )
        if inputs.shape[0] == 0:
            raise InvalidInputError(f"`inputs` has shape {tuple(inputs.shape)}; expected at least one sample.")
        _check_features(spec, inputs)
        if targets.shape[:1] != inputs.shape[:1]:
            raise ShapeError(
                f"`targets` has shape {tuple(targets.shape)} but `inputs` {tuple(inputs.shape)}; expected equally many samples."
            )
        bound_loss = conjugate_loss(loss, targets.detach().cpu(), num_outputs=spec.out_features)
        return cls(inputs=inputs.detach().cpu(), loss=bound_loss, path_decay=float(path_decay), penalty=penalty, spec=spec)

    @property
    def scope(self) -> CertificateScope:
        """Which networks a bound speaks of."""
        if self.penalty == "l2_path":  # its dual norm grows with the hidden widths
            return CertificateScope.GATED_WIDTHS if self.spec.is_gated else CertificateScope.WIDTHS
        return CertificateScope.GATED if self.spec.is_gated else CertificateScope.GLOBAL

    @property
    def dual_norm_limit(self) -> float:
        """What the product-form dual norm of a feasible point may be at most.

        For the l2 path form the dual norm is at most ``spec.l2_path_factor`` times what the oracles bound (for L = 2: exactly).
        """
        if self.penalty == "l2_path":
            return self.path_decay / self.spec.l2_path_factor * (1.0 - 4 * _UNIT)
        return self.path_decay

    def primal(self, weights: ParallelWeights) -> PrimalValue:
        """Objective of a network in this penalty's form (the product form for ``"power"``), rounded up."""
        outputs = weights.outputs(self.inputs)
        kind = "product" if self.penalty == "power" else self.penalty
        numbers = sum(weight[0].numel() for weight in weights.weights) + weights.num_branches + 16
        penalty = float(path_penalty(weights.weights, kind).sum()) * (1.0 + 4 * numbers * _UNIT)
        if not (bool(torch.isfinite(outputs).all()) and math.isfinite(penalty)):
            return PrimalValue(value=math.nan, outputs=outputs, penalty=penalty)
        loss = self.loss.value_upper(outputs, weights.output_error(self.inputs))
        value = (loss + self.path_decay * penalty) * (1.0 + 4 * _UNIT)
        return PrimalValue(value=value, outputs=outputs, penalty=penalty)

    def null_outputs(self) -> Tensor:  # shape: (num_samples, out_features)
        """Outputs of the zero net, its bias fitted if there is one."""
        return self.with_fitted_bias(torch.zeros_like(self.loss.targets))

    def null_value(self) -> float:
        """Objective of the zero net, rounded up: with ``path_decay`` above the largest useful one it is the optimum."""
        outputs = self.null_outputs()
        return self.loss.value_upper(outputs, torch.zeros_like(outputs))

    def with_fitted_bias(self, outputs: Tensor) -> Tensor:
        """``outputs`` plus the output bias that suits them best; unchanged without an output bias."""
        return outputs + self.loss.fitted_bias(outputs) if self.spec.output_bias else outputs

    def dual_candidate(self, outputs: Tensor) -> Tensor:  # shape: (num_samples, out_features)
        """The residual at ``outputs``, bias refitted; in the dual domain and balanced, but of any dual norm."""
        residual = self.loss.residual(self.with_fitted_bias(outputs))
        return self.loss.balanced(residual) if self.spec.output_bias else residual

    def scaled_bound(self, candidate: Tensor, dual_norm: float) -> DualBound:
        r"""The best bound that multiples :math:`s R` of ``candidate`` prove, given that its dual norm is at most ``dual_norm``.

        Args:
            candidate: In the dual domain, balanced if the output has a bias.
            dual_norm: Proven upper bound on its product-form dual norm; ``inf`` gives the vacuous bound.
        """
        if not (math.isfinite(dual_norm) and bool(torch.isfinite(candidate).all())):
            return DualBound.vacuous()
        limit = self.dual_norm_limit
        largest = limit / dual_norm * (1.0 - 4 * _UNIT) if dual_norm > 0.0 else math.inf
        scale = self.loss.best_scale(candidate, largest)
        feature_norms = self.feature_norms()
        for _ in range(8):
            point = scale * candidate
            # fl(s R) differs from s R by half an ulp an entry: its dual norm moves by at most u sum_i |Lam_i| |phi_i|.
            rounding = 2 * _UNIT * float(_row_norms(point) @ feature_norms)
            feasible = self.loss.feasible_point(point, output_bias=self.spec.output_bias)
            repair = float(feasible.row_correction @ feature_norms)
            total = (scale * dual_norm + rounding + repair) * (1.0 + 4 * (len(feature_norms) + 8) * _UNIT)
            if total <= limit and not (feasible.dual_lower < 0.0 and self.loss.is_non_negative):
                return DualBound(value=feasible.dual_lower, dual_point=feasible.dual_point, dual_norm_upper=total)
            if total <= limit:
                # Zero is feasible, and proves that a loss that is never negative is never negative.
                return DualBound(value=0.0, dual_point=torch.zeros_like(point), dual_norm_upper=0.0)
            scale *= limit / total * (1.0 - 16 * _UNIT)
        return DualBound.vacuous()

    def feature_norms(self) -> Tensor:  # shape: (num_samples,)
        """Bounds on the norm of a unit branch's features on each sample: activations never enlarge by more than their slope."""
        steepness = math.prod(max(1.0, abs(slope)) for slope in self.spec.negative_slopes)
        if self.spec.patch_map is not None:
            grid = self.spec.patch_map.grid(self.inputs)
            return steepness * _row_norms(grid.pooled_limits(_row_norms(grid.rows)))
        blocks = row_blocks(len(self.inputs), self.spec.in_features)
        return steepness * torch.cat([_row_norms(self.spec.branch_inputs(self.inputs[rows])) for rows in blocks])


def _check_features(spec: BranchSpec, inputs: Tensor) -> None:
    """Raise unless the branch takes samples of this shape."""
    if spec.patch_map is not None:
        spec.patch_map.check_inputs(inputs)
        return
    if not spec.flatten:
        check_ndim("inputs", inputs, 2, "(num_samples, in_features)")
    width = math.prod(inputs.shape[1:])
    if width != spec.widths[0]:
        raise ShapeError(f"`inputs` has {width} features a sample; expected {spec.widths[0]}, as the first layer takes.")


def _row_norms(matrix: Tensor) -> Tensor:  # (n, d) -> (n,)
    """Norms of the rows, rounded up; squares neither overflow nor vanish."""
    largest = matrix.abs().amax(dim=1)
    safe = torch.where(largest > 0, largest, 1.0)
    lengths = torch.linalg.vector_norm(matrix / safe[:, None], dim=1) * (1.0 + 4 * (matrix.shape[1] + 8) * _UNIT)
    # What underflows when it is divided or multiplied is less than the smallest number an entry.
    norms: Tensor = torch.where(largest > 0, largest * lengths + matrix.shape[1] * 5e-324, 0.0)
    return norms
